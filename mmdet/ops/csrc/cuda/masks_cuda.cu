// Pasting masks on CUDA, in the arithmetic of the CPU kernel (compiled without contraction): a thread takes one column
// of pixels, in steps of the grid, so that nothing is divided per pixel and a warp writes neighbouring bytes.

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "../common.h"

namespace mmdet {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 8;  // pixels a thread takes in an image of usual height

// An axis of `cells` cells over start..stop
struct Axis {
  float start, scale;
  int cells;
  bool valid;

  __device__ Axis(float start, float stop, int cells) : start(start), cells(cells) {
    const float side = stop - start;
    valid = side > 0.f && isfinite(side);
    scale = static_cast<float>(cells) / side;
  }
  // Where pixel i samples the axis, in cells padded by one on each side; false: outside
  __device__ bool sample(int64_t i, int& low, float& weight) const {
    const float at = (static_cast<float>(i) + 0.5f - start) * scale + 0.5f;
    if (!(valid && at > 0.f && at < static_cast<float>(cells + 1))) return false;
    low = static_cast<int>(at);
    weight = at - static_cast<float>(low);
    return true;
  }
};

__device__ inline float between(float a, float b, float weight) { return a + weight * (b - a); }

__global__ void paste(const float* masks, const float* boxes, int64_t n, int mask_h, int mask_w, int64_t height,
                      int64_t width, float threshold, bool* out) {
  const int64_t x = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (x >= width) return;
  for (int64_t d = blockIdx.z; d < n; d += gridDim.z) {
    const float* box = boxes + 4 * d;
    const float* mask = masks + d * mask_h * mask_w;
    const auto cell = [&](int r, int c) {  // padded cells: the border is 0
      return r >= 1 && r <= mask_h && c >= 1 && c <= mask_w ? mask[int64_t(r - 1) * mask_w + c - 1] : 0.f;
    };
    const Axis rows(box[1], box[3], mask_h);
    int row, column;
    float down, across;
    const bool meets = Axis(box[0], box[2], mask_w).sample(x, column, across);
    for (int64_t y = blockIdx.y; y < height; y += gridDim.y) {
      bool inside = false;
      if (meets && rows.sample(y, row, down)) {
        const float above = between(cell(row, column), cell(row, column + 1), across);
        const float below = between(cell(row + 1, column), cell(row + 1, column + 1), across);
        inside = between(above, below, down) >= threshold;
      }
      out[(d * height + y) * width + x] = inside;
    }
  }
}

at::Tensor paste_masks(const at::Tensor& masks, const at::Tensor& boxes, int64_t height, int64_t width,
                       double threshold) {
  const char* op = "paste_masks";
  check_boxes(boxes, 4, op);
  TORCH_CHECK_VALUE(masks.dim() == 3 && masks.size(0) == boxes.size(0), op, ": masks must be (", boxes.size(0),
                    ", h, w), got ", masks.sizes());
  TORCH_CHECK_VALUE(masks.device() == boxes.device(), op, ": masks and boxes must share a device");
  TORCH_CHECK_VALUE(threshold > 0, op, ": threshold must be above 0, got ", threshold);
  check_int32(masks.size(1) + 2, "mask height", op);
  check_int32(masks.size(2) + 2, "mask width", op);
  const c10::cuda::CUDAGuard guard(masks.device());
  const at::Tensor values = masks.to(at::kFloat).contiguous(), corners = boxes.to(at::kFloat).contiguous();
  at::Tensor result = at::empty({masks.size(0), height, width}, masks.options().dtype(at::kBool));
  if (result.numel() == 0) return result;
  const auto steps = [](int64_t size, int64_t each, int64_t most) {
    return static_cast<unsigned>(std::min((size + each - 1) / each, most));
  };
  check_int32(width, "image width", op);
  const dim3 grid(steps(width, kThreads, width), steps(height, kRows, 65535), steps(masks.size(0), 1, 65535));
  paste<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      values.const_data_ptr<float>(), corners.const_data_ptr<float>(), masks.size(0), static_cast<int>(masks.size(1)),
      static_cast<int>(masks.size(2)), height, width, static_cast<float>(threshold), result.data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CUDA, m) { m.impl("paste_masks", mmdet::paste_masks); }

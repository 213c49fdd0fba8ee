// Pasting masks on CUDA: one thread one pixel, in the arithmetic of the CPU kernel (compiled without contraction).

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "../common.h"

namespace mmdet {
namespace {

constexpr int kThreads = 256;

// Where pixel i samples an axis of `cells` cells over start..stop, in cells padded by one on each side; false: outside
__device__ inline bool sample(int64_t i, float start, float stop, int cells, int& low, float& weight) {
  const float side = stop - start;
  if (!(side > 0.f) || !isfinite(side)) return false;
  const float scale = static_cast<float>(cells) / side;
  const float at = (static_cast<float>(i) + 0.5f - start) * scale + 0.5f;
  if (!(at > 0.f && at < static_cast<float>(cells + 1))) return false;
  low = static_cast<int>(at);
  weight = at - static_cast<float>(low);
  return true;
}

__device__ inline float between(float a, float b, float weight) { return a + weight * (b - a); }

__global__ void paste(const float* masks, const float* boxes, int64_t n, int mask_h, int mask_w, int64_t height,
                      int64_t width, float threshold, bool* out) {
  const int64_t total = n * height * width;
  for (int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < total; e += int64_t(gridDim.x) * blockDim.x) {
    const int64_t x = e % width, y = e / width % height, d = e / width / height;
    const float* box = boxes + 4 * d;
    const float* mask = masks + d * mask_h * mask_w;
    int row, column;
    float down, across;
    bool inside = false;
    if (sample(x, box[0], box[2], mask_w, column, across) && sample(y, box[1], box[3], mask_h, row, down)) {
      const auto at = [&](int r, int c) {  // padded cells: the border is 0
        return r >= 1 && r <= mask_h && c >= 1 && c <= mask_w ? mask[(r - 1) * mask_w + c - 1] : 0.f;
      };
      const float above = between(at(row, column), at(row, column + 1), across);
      const float below = between(at(row + 1, column), at(row + 1, column + 1), across);
      inside = between(above, below, down) >= threshold;
    }
    out[e] = inside;
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
  const int64_t blocks = std::min<int64_t>((result.numel() + kThreads - 1) / kThreads, 1 << 20);
  paste<<<static_cast<unsigned>(blocks), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      values.const_data_ptr<float>(), corners.const_data_ptr<float>(), masks.size(0), static_cast<int>(masks.size(1)),
      static_cast<int>(masks.size(2)), height, width, static_cast<float>(threshold), result.data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CUDA, m) { m.impl("paste_masks", mmdet::paste_masks); }

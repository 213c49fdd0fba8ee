// Checks shared by all kernels. Users meet the Python layer's messages; these guard direct callers.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <limits>

namespace mmdet {

inline void check_boxes(const at::Tensor& boxes, int64_t columns, const char* op) {
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == columns, op, ": boxes must be (n, ", columns,
                    "), got ", boxes.sizes());
}

// Row counts and map sizes are kept in 32 bits inside the kernels; products of them never are.
inline void check_int32(int64_t value, const char* what, const char* op) {
  TORCH_CHECK_VALUE(value >= 0 && value < std::numeric_limits<int>::max(), op, ": ", what, " is ", value,
                    ", which does not fit in 31 bits");
}

// Sums of half precision are taken in float.
template <typename S>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

inline void check_maps(at::TensorList maps, const at::Tensor& rois, c10::ArrayRef<double> scales, int64_t h, int64_t w) {
  const char* op = "roi_align";
  TORCH_CHECK_VALUE(!maps.empty() && maps.size() == scales.size(), op, ": needs one spatial scale per map, got ",
                    maps.size(), " maps and ", scales.size(), " scales");
  check_boxes(rois, 5, op);
  TORCH_CHECK_VALUE(h > 0 && w > 0 && h * w < (1 << 20), op, ": output size ", h, " x ", w, " is out of range");
  for (const auto& m : maps) {
    TORCH_CHECK_VALUE(m.dim() == 4 && m.size(0) == maps[0].size(0) && m.size(1) == maps[0].size(1), op,
                      ": maps must be (N, C, H, W) with equal N and C, got ", m.sizes());
    TORCH_CHECK_VALUE(m.device() == rois.device() && m.scalar_type() == maps[0].scalar_type(), op,
                      ": maps and boxes must share device and maps their dtype");
    check_int32(m.size(2), "map height", op);
    check_int32(m.size(3), "map width", op);
  }
}

inline void check_gradient(const at::Tensor& grad, const at::Tensor& rois, at::IntArrayRef shapes,
                           c10::ArrayRef<double> scales) {
  const char* op = "roi_align_backward";
  TORCH_CHECK_VALUE(shapes.size() == 4 * scales.size() && !scales.empty(), op, ": needs four sizes and one scale per map");
  TORCH_CHECK_VALUE(grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == shapes[1], op, ": the gradient ",
                    grad.sizes(), " does not fit the boxes ", rois.sizes());
  check_boxes(rois, 5, op);
}

// What RoIAlign does with a box, decided once for forward and backward, CPU and CUDA.
struct RoIRule {
  double shift;      // pixel centres at half-integers: 0.5, corner convention: 0
  double extra;      // legacy boxes reach to x2 + 1
  double floor;      // least side of a RoI, in cells
  int sampling_ratio;
  double finest_scale;

  RoIRule(int64_t sampling, bool aligned, bool legacy, double finest)
      : shift(aligned && !legacy ? 0.5 : 0.0),
        extra(legacy ? 1.0 : 0.0),
        floor(aligned ? -std::numeric_limits<double>::infinity() : 1.0),
        sampling_ratio(static_cast<int>(sampling)),
        finest_scale(finest) {
    if (legacy) floor = 0.0;
  }
};

}  // namespace mmdet

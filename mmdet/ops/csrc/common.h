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

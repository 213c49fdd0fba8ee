// Batch statistics of channels-last maps on the CPU, and BatchNorm's gradient (arXiv 1502.03167, section 3).
//
// y (N, C, H, W) channels-last, or (N, C), is a matrix of R = N H W rows and C channels. PyTorch's kernels for this
// layout sum in the input's precision and lose two digits. Here a block of rows, which stays in the first cache, gives
// its mean and the squares about it; blocks are merged in double (Chan's formula), so memory is read once. Rows are cut
// into chunks of fixed size, merged in order: results are the same at any number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "../common.h"
#include "fresh.h"
#include "simd.h"

namespace mmdet {

template <typename T>
inline T load(const T* p) {
  return *p;
}
template <typename T>
inline void store(T* p, T value) {
  *p = value;
}
// bfloat16 is the upper half of a float; written so that compilers vectorise it.
inline float load(const at::BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline void store(at::BFloat16* p, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  p->x = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

namespace base {
#include "batch_norm_kernels.inl"
}  // namespace base

#if MMDET_X86_DISPATCH
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "batch_norm_kernels.inl"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace {

constexpr int64_t kChunk = 1024;  // rows

struct Rows {
  int64_t count, channels, chunks;
};

Rows rows_of(const at::Tensor& y, const char* op) {
  TORCH_CHECK_VALUE(y.dim() == 2 || y.dim() == 4, op, ": input must be (N, C) or (N, C, H, W), got ", y.sizes());
  TORCH_CHECK_VALUE(y.dim() == 2 ? y.is_contiguous() : y.is_contiguous(at::MemoryFormat::ChannelsLast), op,
                    ": input must be dense and channels-last");
  const int64_t channels = y.size(1), count = channels ? y.numel() / channels : 0;
  return {count, channels, (count + kChunk - 1) / kChunk};
}

template <typename F>
void for_chunks(const Rows& rows, F&& work) {
  at::parallel_for(0, rows.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i, i * kChunk, std::min(kChunk, rows.count - i * kChunk));
  });
}

// Inputs of float take sums in double, as PyTorch does for planar maps; bfloat16 has few digits of its own.
template <typename T>
struct BlockSum {
  using type = double;
};
template <>
struct BlockSum<at::BFloat16> {
  using type = float;
};

#define MMDET_DISPATCH_TYPES(TYPE, NAME, ...)                                             \
  TORCH_CHECK_VALUE(TYPE == at::kFloat || TYPE == at::kDouble || TYPE == at::kBFloat16,  \
                    NAME, ": float32, float64 or bfloat16 is needed, got ", TYPE);       \
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, TYPE, NAME, __VA_ARGS__)

at::Tensor channel_values(const at::Tensor& y) {
  return at::empty({y.size(1)}, y.options().dtype(y.scalar_type() == at::kDouble ? at::kDouble : at::kFloat)
                                    .memory_format(at::MemoryFormat::Contiguous));
}

std::tuple<at::Tensor, at::Tensor> batch_moments(const at::Tensor& y) {
  const Rows rows = rows_of(y, "batch_moments");
  TORCH_CHECK_VALUE(rows.count > 0, "batch_moments: no values in ", y.sizes());
  const int64_t channels = rows.channels;
  std::vector<double> means(rows.chunks * channels), squares(rows.chunks * channels);
  MMDET_DISPATCH_TYPES(y.scalar_type(), "batch_moments", [&] {
    const scalar_t* data = y.const_data_ptr<scalar_t>();
    using Sum = typename BlockSum<scalar_t>::type;
    for_chunks(rows, [&](int64_t i, int64_t start, int64_t height) {
      MMDET_DISPATCH(chunk_moments<scalar_t, Sum>(data + start * channels, height, channels,
                                                  means.data() + i * channels, squares.data() + i * channels));
    });
  });
  for (int64_t i = 1; i < rows.chunks; ++i) {
    const double before = static_cast<double>(i * kChunk);
    const double height = static_cast<double>(std::min(kChunk, rows.count - i * kChunk));
    const double share = height / (before + height);
    for (int64_t c = 0; c < channels; ++c) {
      const double d = means[i * channels + c] - means[c];
      means[c] += d * share;
      squares[c] += squares[i * channels + c] + d * d * before * share;
    }
  }
  at::Tensor mean = channel_values(y), var = channel_values(y);
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "batch_moments", [&] {
    for (int64_t c = 0; c < channels; ++c) {
      mean.mutable_data_ptr<scalar_t>()[c] = static_cast<scalar_t>(means[c]);
      var.mutable_data_ptr<scalar_t>()[c] = static_cast<scalar_t>(squares[c] / static_cast<double>(rows.count));
    }
  });
  return {mean, var};
}

void check_pair(const at::Tensor& grad, const at::Tensor& y, const char* op) {
  rows_of(grad, op);
  TORCH_CHECK_VALUE(grad.sizes() == y.sizes() && grad.scalar_type() == y.scalar_type(), op,
                    ": gradient and input must share shape and type");
}

void check_channels(at::TensorList values, const at::Tensor& y, const char* op) {
  const auto type = y.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (const auto& value : values)
    TORCH_CHECK_VALUE(value.dim() == 1 && value.size(0) == y.size(1) && value.is_contiguous() && value.scalar_type() == type,
                      op, ": (C,) values of type ", type, " are needed, got ", value.sizes(), " ", value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> batch_norm_sums(const at::Tensor& grad, const at::Tensor& y, const at::Tensor& mean) {
  const char* op = "batch_norm_sums";
  const Rows rows = rows_of(y, op);
  check_pair(grad, y, op);
  check_channels({mean}, y, op);
  const int64_t channels = rows.channels;
  std::vector<double> sums(rows.chunks * channels), products(rows.chunks * channels);
  const at::Tensor centre = mean.to(at::kDouble);
  const double* centres = centre.const_data_ptr<double>();
  MMDET_DISPATCH_TYPES(y.scalar_type(), "batch_norm", [&] {
    const scalar_t *g = grad.const_data_ptr<scalar_t>(), *data = y.const_data_ptr<scalar_t>();
    using Sum = typename BlockSum<scalar_t>::type;
    for_chunks(rows, [&](int64_t i, int64_t start, int64_t height) {
      MMDET_DISPATCH(chunk_sums<scalar_t, Sum>(g + start * channels, data + start * channels, centres, height, channels,
                                               sums.data() + i * channels, products.data() + i * channels));
    });
  });
  at::Tensor sum_g = channel_values(y), sum_gd = channel_values(y);
  AT_DISPATCH_FLOATING_TYPES(sum_g.scalar_type(), "batch_norm", [&] {
    for (int64_t c = 0; c < channels; ++c) {
      double first = 0, second = 0;
      for (int64_t i = 0; i < rows.chunks; ++i) first += sums[i * channels + c], second += products[i * channels + c];
      sum_g.mutable_data_ptr<scalar_t>()[c] = static_cast<scalar_t>(first);
      sum_gd.mutable_data_ptr<scalar_t>()[c] = static_cast<scalar_t>(second);
    }
  });
  return {sum_g, sum_gd};
}

at::Tensor batch_norm_input_grad(const at::Tensor& grad, const at::Tensor& y, const at::Tensor& mean,
                                 const at::Tensor& scale, const at::Tensor& shift, const at::Tensor& slope) {
  const char* op = "batch_norm_input_grad";
  const Rows rows = rows_of(y, op);
  check_pair(grad, y, op);
  check_channels({mean, scale, shift, slope}, y, op);
  at::Tensor out = at::empty_like(y);
  prefer_large_pages(out);
  MMDET_DISPATCH_TYPES(y.scalar_type(), "batch_norm", [&] {
    using Value = typename Compute<scalar_t>::type;
    const scalar_t *g = grad.const_data_ptr<scalar_t>(), *data = y.const_data_ptr<scalar_t>();
    const Value *m = mean.const_data_ptr<Value>(), *s = scale.const_data_ptr<Value>(),
                *b = shift.const_data_ptr<Value>(), *k = slope.const_data_ptr<Value>();
    scalar_t* result = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows.count, 256, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * rows.channels;
      MMDET_DISPATCH(chunk_input_grad<scalar_t, Value>(g + at, data + at, m, s, b, k, end - begin, rows.channels,
                                                       result + at));
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmdet, m) {
  m.def("batch_moments(Tensor y) -> (Tensor, Tensor)");
  m.def("batch_norm_sums(Tensor grad, Tensor y, Tensor mean) -> (Tensor, Tensor)");
  m.def("batch_norm_input_grad(Tensor grad, Tensor y, Tensor mean, Tensor scale, Tensor shift, Tensor slope) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmdet, CPU, m) {
  m.impl("batch_moments", batch_moments);
  m.impl("batch_norm_sums", batch_norm_sums);
  m.impl("batch_norm_input_grad", batch_norm_input_grad);
}

}  // namespace mmdet

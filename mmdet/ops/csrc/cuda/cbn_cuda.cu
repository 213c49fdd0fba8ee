// The training forward of Cross-Iteration Batch Normalization on CUDA, beside PyTorch's own two passes over y: one
// kernel and a matrix product find the derivatives of the batch's statistics on a grid of positions, one kernel
// pools them with the history and extends it.
//
//   C, G, K   output channels; groups of the convolution; weights of one output channel, K = C_in / G * kh * kw
//   P         output positions of the grid
//   S         past batches the history can hold
//
// The arithmetic is that of mmdet/layers/cbn, which says what the numbers mean.

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../common.h"

namespace mmdet {
namespace {

using at::Tensor;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

// -- derivatives of the batch's statistics ---------------------------------------------------------------------------

// What the matrix product runs in: bfloat16 has float's range, so that float16 cannot overflow.
template <typename Y>
struct Factor {
  using type = Y;
};
template <>
struct Factor<c10::Half> {
  using type = c10::BFloat16;
};

struct Layout {
  int c_in, height, width, c_out, groups;
  int64_t x_stride[4], y_stride[4];
  int kernel[2], stride[2], padding[2], dilation[2];
  int step[3], start[3], count[3];  // the grid over maps, rows and columns of y
  int64_t row;                       // its positions, rounded up to a multiple of 8, which matrix products like
};

// Blocks 0 .. C_in - 1: under each kernel offset of an input channel, x at the grid's positions: a row each of patches
// (C_in * kh * kw, row). The others: rows of factors (G, C / G + 1, row), y less its mean, and halves as each group's last.
template <typename X, typename Y, typename A, typename F>
__global__ void __launch_bounds__(kThreads) gather(const X* x, const Y* y, const A* mean, Layout l, F* patches, F* factors) {
  const int per_group = l.c_out / l.groups, of_y = static_cast<int>(blockIdx.x) - l.c_in;
  const int group = of_y / (per_group + 1), member = of_y % (per_group + 1), c = group * per_group + member;
  for (int64_t p = threadIdx.x; p < l.row; p += kThreads) {
    const int column = static_cast<int>(p % l.count[2]), rows = static_cast<int>(p / l.count[2]);
    const int64_t map = rows / l.count[1] * l.step[0] + l.start[0];
    const int h = rows % l.count[1] * l.step[1] + l.start[1], w = column * l.step[2] + l.start[2];
    const bool there = rows / l.count[1] < l.count[0];
    if (of_y < 0) {
      const X* from = x + map * l.x_stride[0] + blockIdx.x * l.x_stride[1];
      F* to = patches + int64_t(blockIdx.x) * l.kernel[0] * l.kernel[1] * l.row + p;
      for (int i = 0; i < l.kernel[0]; ++i) {
        const int y_in = h * l.stride[0] - l.padding[0] + i * l.dilation[0];
        for (int j = 0; j < l.kernel[1]; ++j, to += l.row) {
          const int x_in = w * l.stride[1] - l.padding[1] + j * l.dilation[1];
          const bool meets = there && y_in >= 0 && y_in < l.height && x_in >= 0 && x_in < l.width;
          *to = meets ? static_cast<F>(static_cast<A>(from[y_in * l.x_stride[2] + x_in * l.x_stride[3]])) : F(0);
        }
      }
    } else {
      A value = 0;
      if (there && member == per_group) value = A(0.5);
      if (there && member < per_group)
        value = static_cast<A>(y[map * l.y_stride[0] + c * l.y_stride[1] + h * l.y_stride[2] + w * l.y_stride[3]]) - mean[c];
      factors[int64_t(of_y) * l.row + p] = static_cast<F>(value);
    }
  }
}

template <typename X, typename Y>
Tensor launch_gather(const Tensor& x, const Tensor& y, const Tensor& mean, const Layout& l) {
  using A = typename Compute<Y>::type;
  using F = typename Factor<Y>::type;
  const auto options = mean.options().dtype(c10::CppTypeToScalarType<F>::value);
  const Tensor patches = at::empty({l.groups, l.c_in / l.groups * l.kernel[0] * l.kernel[1], l.row}, options);
  const Tensor factors = at::empty({l.groups, l.c_out / l.groups + 1, l.row}, options);
  gather<X, Y, A, F><<<static_cast<unsigned>(l.c_in + l.c_out + l.groups), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      x.const_data_ptr<X>(), y.const_data_ptr<Y>(), mean.const_data_ptr<A>(), l, patches.data_ptr<F>(), factors.data_ptr<F>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const double share = 2. / (int64_t(l.count[0]) * l.count[1] * l.count[2]);
  const Tensor nothing = at::empty({1, 1}, options);  // not read
  if (l.groups == 1) return at::addmm(nothing, factors[0], patches[0].t(), 0, share).unsqueeze(0);
  return at::baddbmm(nothing.unsqueeze(0), factors, patches.mT(), 0, share);
}

Tensor cbn_derivatives(const Tensor& x, const Tensor& y, const Tensor& mean, at::IntArrayRef kernel,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                       at::IntArrayRef step, at::IntArrayRef start) {
  const char* op = "cbn_derivatives";
  TORCH_CHECK_VALUE(x.dim() == 4 && y.dim() == 4 && x.size(0) == y.size(0) && x.size(1) % groups == 0 &&
                        y.size(1) % groups == 0 && y.numel() > 0,
                    op, ": x ", x.sizes(), " and y ", y.sizes(), " do not fit");
  TORCH_CHECK_VALUE(mean.numel() == y.size(1) && mean.is_contiguous(), op, ": mean must be (C,)");
  TORCH_CHECK_VALUE(step.size() == 3 && start.size() == 3, op, ": the grid has 3 axes");
  TORCH_CHECK_VALUE(x.device() == y.device() && mean.device() == y.device(), op, ": tensors must share a device");
  for (const int64_t size : {x.size(2), x.size(3), x.size(1) + y.size(1) + groups, y.size(0) * y.size(2) * y.size(3)})
    check_int32(size, "a size", op);
  Layout l;
  l.c_in = x.size(1), l.height = x.size(2), l.width = x.size(3), l.c_out = y.size(1), l.groups = groups;
  for (int a = 0; a < 4; ++a) l.x_stride[a] = x.stride(a), l.y_stride[a] = y.stride(a);
  for (int a = 0; a < 2; ++a)
    l.kernel[a] = kernel[a], l.stride[a] = stride[a], l.padding[a] = padding[a], l.dilation[a] = dilation[a];
  int64_t positions = 1;
  for (int a = 0; a < 3; ++a) {
    const int64_t size = y.size(a ? a + 1 : 0);
    TORCH_CHECK_VALUE(start[a] >= 0 && start[a] < size && step[a] > 0, op, ": the grid misses y");
    l.step[a] = step[a], l.start[a] = start[a], l.count[a] = (size - start[a] + step[a] - 1) / step[a];
    positions *= l.count[a];
  }
  l.row = (positions + 7) / 8 * 8;
  const c10::cuda::CUDAGuard guard(y.device());
  const auto type = y.scalar_type();
  const Tensor in = x.scalar_type() == at::kFloat && type != at::kDouble ? x : x.to(type);
  const bool wide = in.scalar_type() == at::kFloat;
  switch (type) {
    case at::kDouble:
      return launch_gather<double, double>(in, y, mean, l);
    case at::kFloat:
      return launch_gather<float, float>(in, y, mean, l);
    case at::kHalf:
      return wide ? launch_gather<float, c10::Half>(in, y, mean, l) : launch_gather<c10::Half, c10::Half>(in, y, mean, l);
    case at::kBFloat16:
      return wide ? launch_gather<float, c10::BFloat16>(in, y, mean, l)
                  : launch_gather<c10::BFloat16, c10::BFloat16>(in, y, mean, l);
    default:
      TORCH_CHECK_TYPE(false, op, ": y has type ", type);
  }
}

// -- the history -----------------------------------------------------------------------------------------------------

constexpr int kTogether = 4;  // batches whose products with the weight are summed in one pass over it

// A row of numbers of any floating type, read as T
struct Row {
  const void* data = nullptr;
  at::ScalarType type = at::kFloat;

  Row() = default;
  Row(const Tensor& t) : data(t.const_data_ptr()), type(t.scalar_type()) {}

  template <typename T>
  __device__ T at(int64_t i) const {
    switch (type) {
      case at::kDouble:
        return static_cast<T>(static_cast<const double*>(data)[i]);
      case at::kHalf:
        return static_cast<T>(static_cast<float>(static_cast<const c10::Half*>(data)[i]));
      case at::kBFloat16:
        return static_cast<T>(static_cast<float>(static_cast<const c10::BFloat16*>(data)[i]));
      default:
        return static_cast<T>(static_cast<const float*>(data)[i]);
    }
  }
};

template <typename T>
struct PoolArgs {
  Row weight, bias, derivatives;                       // (C, K), (C,), (G, C / G + 1, K) of this batch; or nothing
  const T *mean, *var, *dmean;                         // (C,), (C,), (G, S, K)
  T *values, *dvar, *dmean_out;                        // (4, C, S), (C, S, K), (G, S, K)
  T *running_mean, *running_var;                       // (C,) or nothing
  const int64_t* tracked;                              // batches so far where the average is cumulative, or nothing
  T *pooled_mean, *pooled_var, *rstd;                  // (C,)
  T *by_mean, *by_var;                                 // (G, K), (C, K): their derivatives by the past batches
  int* total;                                          // (1,)
  int channels, per_group, held, filled, slot, k;      // C, C / G, S
  double count, rho, momentum, eps;
  bool root, enters, full_gradient;                    // the root form; enter the batch; by_mean, by_var are wanted
};

template <typename T>
__device__ inline T warp_sum(T value) {
  for (int offset = 16; offset; offset >>= 1) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

// One block an output channel
template <typename T>
__global__ void __launch_bounds__(kThreads) pool(const PoolArgs<T> a) {
  __shared__ T partial[kWarps][2 * kTogether];
  extern __shared__ __align__(16) unsigned char shared[];
  T* products = reinterpret_cast<T*>(shared);  // <dmean, weight>, <dvar, weight> of each batch held, and of the new one
  const int c = blockIdx.x, t = threadIdx.x;
  const int64_t group = c / a.per_group, own = int64_t(c) * a.k;
  const int64_t new_dvar = own + group * a.k, new_dmean = (group + 1) * (a.per_group + 1) * a.k - a.k;  // in derivatives
  const int batches = a.filled + a.enters;
  for (int from = 0; from < batches; from += kTogether) {
    T sums[2 * kTogether] = {};
    for (int k = t; k < a.k; k += kThreads) {
      const T w = a.weight.template at<T>(own + k);
#pragma unroll
      for (int u = 0; u < kTogether; ++u) {
        const int64_t s = from + u;
        if (s < a.filled) {
          sums[2 * u] += a.dmean[(group * a.held + s) * a.k + k] * w;
          sums[2 * u + 1] += a.dvar[(int64_t(c) * a.held + s) * a.k + k] * w;
        } else if (s < batches) {
          sums[2 * u] += a.derivatives.template at<T>(new_dmean + k) * w;
          sums[2 * u + 1] += a.derivatives.template at<T>(new_dvar + k) * w;
        }
      }
    }
    for (int u = 0; u < 2 * kTogether; ++u) {
      const T sum = warp_sum(sums[u]);
      if (t % 32 == 0) partial[t / 32][u] = sum;
    }
    __syncthreads();
    if (t < 2 * kTogether && 2 * from + t < 2 * batches) {
      T sum = 0;
      for (int i = 0; i < kWarps; ++i) sum += partial[i][t];
      products[2 * from + t] = sum;
    }
    __syncthreads();
  }
  const auto value = [&](int which, int s) -> T& { return a.values[(which * int64_t(a.channels) + c) * a.held + s]; };
  const T rho = static_cast<T>(a.rho), n = a.filled + 1;
  if (t == 0) {
    const T shift_all = a.bias.data ? a.bias.template at<T>(c) : T(0), mean = a.mean[c] - shift_all, var = a.var[c];
    T sum_mean = mean, sum_var = var;
    for (int s = 0; s < a.filled; ++s) {
      const T then = value(0, s), var_then = value(1, s);
      T now = value(2, s) + products[2 * s], var_now = value(3, s) + products[2 * s + 1];
      now = then + rho * (now - then);
      var_now = var_then + rho * (var_now - var_then);
      const T shift = now - then;
      if (a.root) {  // sqrt(nu) is a norm of w: nu' = nu (1 + dnu / (2 nu))^2
        const T dnu = var_now - var_then + 2 * then * shift, nu = var_then + then * then;
        var_now += T(0.25) * dnu * dnu / max(nu, std::numeric_limits<T>::min());
      }
      var_now = max(var_now - shift * shift, T(0));
      sum_mean += now;
      sum_var += var_now;
      products[2 * s] = now;
      products[2 * s + 1] = var_now;
    }
    const T pooled = sum_mean / n;
    T between = (mean - pooled) * (mean - pooled);
    for (int s = 0; s < a.filled; ++s) between += (products[2 * s] - pooled) * (products[2 * s] - pooled);
    const T pooled_var = (sum_var + between) / n;
    a.pooled_mean[c] = pooled + shift_all;
    a.pooled_var[c] = pooled_var;
    a.rstd[c] = 1 / sqrt(pooled_var + static_cast<T>(a.eps));
    if (c == 0) *a.total = static_cast<int>(a.count * (a.filled + 1));
    for (int s = 0; a.full_gradient && s < a.filled; ++s) {  // how much of dmean and of dvar is in dpooled_var
      const T now = products[2 * s], var_now = products[2 * s + 1], then = value(0, s);
      const T kept = var_now > 0 ? T(1) : T(0);
      T stretch = kept;
      if (a.root) {  // 1 + dnu / (2 nu)
        const T nu = max(value(1, s) + then * then, std::numeric_limits<T>::min());
        stretch *= sqrt((var_now + now * now) / nu);
      }
      products[2 * s] = 2 * (now - pooled + stretch * then - kept * now);
      products[2 * s + 1] = stretch;
    }
    if (a.enters) {
      value(0, a.slot) = mean;
      value(1, a.slot) = var;
      value(2, a.slot) = mean - products[2 * a.filled];
      value(3, a.slot) = var - products[2 * a.filled + 1];
    }
    if (a.running_mean != nullptr) {
      const T rate = a.tracked != nullptr ? T(1) / static_cast<T>(*a.tracked) : static_cast<T>(a.momentum);
      a.running_mean[c] += rate * (a.mean[c] - a.running_mean[c]);
      a.running_var[c] += rate * (var * static_cast<T>(a.count / (a.count - 1)) - a.running_var[c]);
    }
  }
  if (a.full_gradient) {
    __syncthreads();
    for (int k = t; k < a.k; k += kThreads) {
      T of_mean = 0, of_var = 0;
      for (int s = 0; s < a.filled; ++s) {
        const T dmean = a.dmean[(group * a.held + s) * a.k + k];
        of_mean += dmean;
        of_var += products[2 * s] * dmean + products[2 * s + 1] * a.dvar[(int64_t(c) * a.held + s) * a.k + k];
      }
      if (c % a.per_group == 0) a.by_mean[group * a.k + k] = of_mean * rho / n;
      a.by_var[own + k] = of_var * rho / n;
    }
  }
  if (a.enters) {  // the oldest batch, if its place is taken, has been read by now, at k by this same thread
    for (int k = t; k < a.k; k += kThreads) {
      a.dvar[(int64_t(c) * a.held + a.slot) * a.k + k] = a.derivatives.template at<T>(new_dvar + k);
      if (c % a.per_group == 0)
        for (int s = 0; s < a.held; ++s) {
          const int64_t i = (group * a.held + s) * a.k + k;
          a.dmean_out[i] = s == a.slot ? a.derivatives.template at<T>(new_dmean + k) : a.dmean[i];
        }
    }
  }
}

template <typename T>
T* pointer(const std::optional<Tensor>& t) {
  return t.has_value() ? t->data_ptr<T>() : nullptr;
}

using Optional = std::optional<Tensor>;
using Pooled = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Pooled launch_pool(PoolArgs<T> a, const Tensor& mean, const Tensor& var, const Optional& values, const Optional& dmean,
                   const Optional& dvar, const Optional& running_mean, const Optional& running_var,
                   const Optional& tracked) {
  const Tensor pooled_mean = at::empty_like(mean), pooled_var = at::empty_like(mean), rstd = at::empty_like(mean);
  const Tensor total = at::empty({1}, mean.options().dtype(at::kInt));
  const int64_t groups = a.channels / a.per_group, k = a.full_gradient ? a.k : 0;
  const Tensor dmean_out = at::empty({groups, a.enters ? a.held : 0, a.k}, mean.options());
  const Tensor by_mean = at::empty({groups, k}, mean.options()), by_var = at::empty({a.channels, k}, mean.options());
  a.mean = mean.const_data_ptr<T>(), a.var = var.const_data_ptr<T>();
  a.values = pointer<T>(values), a.dmean = pointer<T>(dmean), a.dvar = pointer<T>(dvar);
  a.dmean_out = dmean_out.data_ptr<T>();
  a.running_mean = pointer<T>(running_mean), a.running_var = pointer<T>(running_var);
  a.tracked = pointer<int64_t>(tracked);
  a.pooled_mean = pooled_mean.data_ptr<T>(), a.pooled_var = pooled_var.data_ptr<T>(), a.rstd = rstd.data_ptr<T>();
  a.by_mean = by_mean.data_ptr<T>(), a.by_var = by_var.data_ptr<T>(), a.total = total.data_ptr<int>();
  const size_t shared = 2 * (a.filled + 1) * sizeof(T);
  pool<T><<<static_cast<unsigned>(a.channels), kThreads, shared, c10::cuda::getCurrentCUDAStream()>>>(a);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {pooled_mean, pooled_var, rstd, total, dmean_out, by_mean, by_var};
}

Pooled cbn_pool(const Optional& weight, const Tensor& mean, const Tensor& var, const Optional& bias, const Optional& values,
                const Optional& dmean, const Optional& dvar, const Optional& derivatives, const Optional& running_mean,
                const Optional& running_var, const Optional& tracked, double momentum, int64_t filled, int64_t slot,
                int64_t count, double rho, bool root, bool full_gradient, double eps) {
  const char* op = "cbn_pool";
  const int64_t channels = mean.numel(), held = values.has_value() ? values->size(2) : 0;
  const int64_t k = dvar.has_value() ? dvar->size(2) : 0, groups = dmean.has_value() ? dmean->size(0) : 1;
  TORCH_CHECK_VALUE(channels > 0 && var.sizes() == mean.sizes() && channels % groups == 0, op, ": mean and var must be (C,)");
  TORCH_CHECK_VALUE(values.has_value() == dmean.has_value() && values.has_value() == dvar.has_value() && 0 <= filled &&
                        filled <= held, op, ": a history of ", held, " batches, ", filled, " of them filled");
  if (held) {
    TORCH_CHECK_VALUE(values->sizes() == at::IntArrayRef({4, channels, held}) && dmean->size(1) == held &&
                          dmean->size(2) == k && dvar->size(0) == channels && dvar->size(1) == held,
                      op, ": the history's sizes differ");
    TORCH_CHECK_VALUE(k == 0 || (weight.has_value() && weight->numel() == channels * k), op, ": weight must be (C, K)");
  }
  TORCH_CHECK_VALUE(running_mean.has_value() == running_var.has_value(), op, ": running statistics come in pairs");
  TORCH_CHECK_VALUE(!derivatives.has_value() ||
                        (0 <= slot && slot < held && derivatives->numel() == (channels + groups) * k),
                    op, ": the new batch does not fit the history");
  for (const auto& t : {weight, Optional(mean), Optional(var), bias, values, dmean, dvar, derivatives, running_mean,
                        running_var, tracked})
    TORCH_CHECK_VALUE(!t.has_value() || (t->device() == mean.device() && t->is_contiguous()), op,
                      ": tensors must be contiguous and share a device");
  const c10::cuda::CUDAGuard guard(mean.device());
  const auto launch = [&](auto zero) {
    PoolArgs<decltype(zero)> a;
    if (weight.has_value()) a.weight = *weight;
    if (bias.has_value()) a.bias = *bias;
    if (derivatives.has_value()) a.derivatives = *derivatives;
    a.channels = channels, a.per_group = channels / groups, a.held = held, a.filled = filled, a.slot = slot, a.k = k;
    a.count = count, a.rho = rho, a.momentum = momentum, a.eps = eps, a.root = root;
    a.enters = derivatives.has_value(), a.full_gradient = full_gradient && filled && k;
    return launch_pool(a, mean, var, values, dmean, dvar, running_mean, running_var, tracked);
  };
  if (mean.scalar_type() == at::kDouble) return launch(double());
  return launch(float());
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CUDA, m) {
  m.impl("cbn_derivatives", mmdet::cbn_derivatives);
  m.impl("cbn_pool", mmdet::cbn_pool);
}

// Cross-Iteration Batch Normalization's training step as one operator with its gradient, in C++: for a small layer the
// host's time in Python would be longer than the GPU's. The arithmetic is that of mmdet/layers/cbn, which says what
// the numbers mean; the operators called here are PyTorch's of SyncBatchNorm and those of cbn_cuda.cu.

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/batch_norm_backward_elemt.h>
#include <ATen/ops/batch_norm_backward_reduce.h>
#include <ATen/ops/batch_norm_elemt.h>
#include <ATen/ops/batch_norm_update_stats.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sqrt.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace mmdet {
namespace {

using at::IntArrayRef;
using at::Tensor;
using Optional = std::optional<Tensor>;

bool channels_last(const Tensor& y) {
  return y.dim() == 4 && y.is_contiguous(at::MemoryFormat::ChannelsLast) && !y.is_contiguous();
}

// gamma (y - mean) / sqrt(var + eps) + beta as Normalize of layers/batch_stats.py, which has the formulas. `total` is n M;
// dmean (G, K) and dvar (C, K) are defined where the gradient follows the past batches to the convolution's `weight`.
struct Normalize : torch::autograd::Function<Normalize> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& y_any, const Optional& gamma,
                        const Optional& beta, const Optional& weight, const Tensor& mean, const Tensor& rstd,
                        const Tensor& total, const Tensor& dmean, const Tensor& dvar, double eps) {
    const Tensor y = channels_last(y_any) ? y_any : y_any.contiguous();  // the kernels want one of the two layouts
    ctx->save_for_backward({y, mean, rstd, gamma.value_or(Tensor())});
    // Not saved as tensors, which activation checkpointing would make anew when the history has moved on.
    ctx->saved_data["total"] = total;
    ctx->saved_data["shifts"] = beta.has_value();
    if (weight.has_value()) {
      ctx->saved_data["dmean"] = dmean, ctx->saved_data["dvar"] = dvar;
      ctx->saved_data["shape"] = weight->sizes();
    }
    const auto wide = [&](const Optional& t) { return t.has_value() ? Optional(t->to(mean.scalar_type())) : t; };
    return at::batch_norm_elemt(y, wide(gamma), wide(beta), mean, rstd, eps);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    torch::autograd::variable_list out(10);  // one for each argument of forward: y, gamma, beta, weight, ...
    {
      const at::NoGradGuard no_grad;
      const auto saved = ctx->get_saved_variables();
      const Tensor &y = saved[0], &mean = saved[1], &rstd = saved[2];
      const Tensor gamma = saved[3].defined() ? saved[3].to(mean.scalar_type()) : at::ones_like(mean);
      const Tensor grad = grads[0].contiguous(channels_last(y) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
      const auto [sum_g, sum_gd, grad_gamma, grad_beta] =
          at::batch_norm_backward_reduce(grad, y, mean, rstd, gamma, true, true, true);  // sum_gd: of g (y - mean)
      if (ctx->needs_input_grad(0))
        out[0] = at::batch_norm_backward_elemt(grad, y, mean, rstd, gamma, sum_g, sum_gd,
                                               ctx->saved_data["total"].toTensor());
      if (saved[3].defined()) out[1] = grad_gamma;
      if (ctx->saved_data["shifts"].toBool()) out[2] = grad_beta;
      if (ctx->saved_data.count("dmean")) {
        const Tensor dmean = ctx->saved_data["dmean"].toTensor(), dvar = ctx->saved_data["dvar"].toTensor();
        const Tensor scale = gamma * rstd, by_mean = (scale * sum_g).view({dmean.size(0), -1, 1}) * dmean.unsqueeze(1);
        const Tensor by_var = (scale * rstd * grad_gamma).unsqueeze(1) * dvar;
        out[3] = by_mean.view(dvar.sizes()).add(by_var, 0.5).neg_().view(ctx->saved_data["shape"].toIntVector());
      }
    }
    if (!at::GradMode::is_enabled()) return out;
    for (auto& t : out)
      if (t.defined()) t = t.detach().requires_grad_();
    return torch::autograd::DelayedError("CBN: its gradient has no gradient of its own", static_cast<int64_t>(out.size()))
        .apply(std::move(out));
  }
};

// What a convolution does to positions
struct Geometry {
  IntArrayRef kernel, stride, padding, dilation;
  int64_t groups;
};

// dvar / dw and dmean / dw (G, C / G + 1, K) from all positions of y, as in layers/cbn/derivatives.py
Tensor in_closed_form(const Tensor& x, const Tensor& y, const Tensor& mean, const Tensor& var, const Geometry& g,
                      const Optional& rows, const Optional& columns) {
  const int64_t channels = y.size(1), positions = y.numel() / channels;
  Tensor patch = x.sum({0}, false, mean.scalar_type());
  patch = rows.has_value() ? at::matmul(*rows, at::matmul(patch, columns->t())) : patch.sum({1, 2});
  const Tensor dmean = patch.reshape({g.groups, 1, -1}) / static_cast<double>(positions);
  const double eps = 1e-12;
  Tensor y_hat = at::batch_norm(y, {}, {}, mean, var, false, 0., eps, at::globalContext().userEnabledCuDNN());
  const auto like_y = [&](const Tensor& t) { return t.scalar_type() == y.scalar_type() ? t : t.to(y.scalar_type()); };
  Tensor input = like_y(x), scale = at::sqrt(var + eps) * (2. / static_cast<double>(positions));
  if (y.scalar_type() == at::kHalf) {  // so that the sums stay within its range
    const Tensor largest = input.abs().amax().clamp_min(1e-4);
    input = input / largest, y_hat = y_hat / 32., scale = scale * largest.to(at::kFloat) * 32.;
  }
  const Tensor kernels = y.new_empty({1}).expand({channels, x.size(1) / g.groups, g.kernel[0], g.kernel[1]});  // not read
  const Tensor gradient = std::get<1>(
      at::convolution_backward(y_hat, input, kernels, at::OptionalIntArrayRef(), g.stride, g.padding, g.dilation, false,
                               {0, 0}, g.groups, {false, true, false}));
  const Tensor dvar = gradient.flatten(1) * scale.unsqueeze(1);
  return at::cat({dvar.unflatten(0, {g.groups, -1}), dmean}, 1);
}

template <typename F>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

using Derivatives = Tensor(const Tensor&, const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                           int64_t, IntArrayRef, IntArrayRef);
using Pool = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Optional&, const Tensor&, const Tensor&, const Optional&, const Optional&, const Optional&, const Optional&,
    const Optional&, const Optional&, const Optional&, const Optional&, double, int64_t, int64_t, int64_t, double, bool,
    bool, double);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cbn_train(
    const Tensor& y, const Optional& weight, const Optional& bias, const Optional& gamma, const Optional& beta,
    const Optional& x, const Optional& sample, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, int64_t groups, IntArrayRef step, IntArrayRef start, const Optional& rows,
    const Optional& columns, const Optional& values, const Optional& dmean, const Optional& dvar,
    const Optional& running_mean, const Optional& running_var, const Optional& tracked, std::optional<double> momentum,
    int64_t filled, int64_t slot, bool enters, double rho, bool root, bool full_gradient, double eps) {
  const char* op = "cbn_train";
  TORCH_CHECK_VALUE((y.dim() == 4 || y.dim() == 2) && y.numel() > 0, op, ": y must be (N, C, H, W) or (N, C), got ", y.sizes());
  TORCH_CHECK_VALUE(x.has_value() == sample.has_value() && (!x.has_value() || (x->dim() == 4 && sample->dim() == 4)), op,
                    ": x and sample come together, as (N, C, H, W)");
  TORCH_CHECK_VALUE(!enters || (values.has_value() && (x.has_value() || dvar->size(2) == 0)), op,
                    ": a batch enters the history with its derivatives");
  static const auto derivatives_op = find<Derivatives>("mmdet::cbn_derivatives");
  static const auto pool_op = find<Pool>("mmdet::cbn_pool");
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  Tensor mean, pooled_mean, pooled_var, rstd, total, moved, by_mean, by_var;
  {
    const at::AutoDispatchBelowADInplaceOrView no_grad;
    Tensor var;
    std::tie(mean, var) = at::batch_norm_update_stats(y, {}, {}, 0.);
    Optional derivatives;
    if (enters && !x.has_value()) {  // nothing to compensate for
      derivatives = mean.new_empty({1, mean.numel() + 1, 0});
    } else if (enters && !step.empty()) {
      derivatives = derivatives_op.call(*x, *sample, mean, kernel, stride, padding, dilation, groups, step, start);
    } else if (enters) {
      derivatives = in_closed_form(*x, *sample, mean, var, {kernel, stride, padding, dilation, groups}, rows, columns);
    }
    if (tracked.has_value()) tracked->add_(1);
    const Optional kept = weight.has_value() ? Optional(weight->contiguous()) : std::nullopt;
    std::tie(pooled_mean, pooled_var, rstd, total, moved, by_mean, by_var) = pool_op.call(
        kept, mean, var, bias, values, dmean, dvar, derivatives, running_mean, running_var, momentum ? std::nullopt : tracked,
        momentum.value_or(0.), filled, slot, y.numel() / y.size(1), rho, root, full_gradient, eps);
  }
  const Optional followed = by_var.numel() ? weight : std::nullopt;
  const Tensor out = Normalize::apply(y, gamma, beta, followed, pooled_mean, rstd, total, by_mean, by_var, eps);
  return {out, mean, pooled_mean, pooled_var, moved};
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CUDA, m) { m.impl("cbn_train", mmdet::cbn_train); }
TORCH_LIBRARY_IMPL(mmdet, AutogradCUDA, m) { m.impl("cbn_train", mmdet::cbn_train); }

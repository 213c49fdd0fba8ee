// Schemas of the operators. Kernels stand in cpu/ and cuda/; fake kernels, autograd and the checks of what
// users pass in stand in Python, one file per operator.

#include <torch/library.h>
#include <torch/version.h>

#include <string>

extern const char mmdet_sources[];  // digest of these files, see setup.py

namespace {

std::string build_info() {
  std::string info = "torch=" TORCH_VERSION " sources=";
  info += mmdet_sources;
#ifdef MMDET_WITH_CUDA
  info += " cuda=1";
#else
  info += " cuda=0";
#endif
#ifdef _OPENMP
  info += " openmp=1";
#else
  info += " openmp=0";
#endif
#if defined(__clang__)
  info += " compiler=clang-" + std::to_string(__clang_major__);
#elif defined(__GNUC__)
  info += " compiler=gcc-" + std::to_string(__GNUC__);
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
  info += __builtin_cpu_supports("avx2") ? " simd=avx2" : " simd=sse2";
#else
  info += " simd=compiler";
#endif
  return info;
}

}  // namespace

TORCH_LIBRARY(mmdet, m) {
  m.def("build_info() -> str", build_info);
  m.def(
      "roi_align(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt height, SymInt width, "
      "int sampling_ratio, bool aligned, bool legacy, float finest_scale) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, SymInt[] shapes, float[] spatial_scales, "
      "int sampling_ratio, bool aligned, bool legacy, float finest_scale, bool channels_last) -> Tensor[]");
  m.def("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float offset) -> Tensor");
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, float sigma, "
      "float min_score, int method, float offset) -> (Tensor, Tensor)");
  m.def("paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor");
  m.def(
      "masks_to_rle(Tensor masks, Tensor boxes, int height, int width, float threshold) "
      "-> (Tensor, Tensor)");
  m.def(
      "rasterize_polygons(Tensor points, Tensor parts, Tensor instances, Tensor indices, Tensor boxes, "
      "SymInt height, SymInt width) -> Tensor");
  m.def(
      "cbn_derivatives(Tensor x, Tensor y, Tensor mean, int[] kernel, int[] stride, int[] padding, int[] dilation, "
      "int groups, int[] step, int[] start) -> Tensor");
  m.def(
      "cbn_pool(Tensor? weight, Tensor mean, Tensor var, Tensor? bias, Tensor(a!)? values, Tensor? dmean, "
      "Tensor(b!)? dvar, Tensor? derivatives, Tensor(c!)? running_mean, Tensor(d!)? running_var, "
      "Tensor? tracked, float momentum, int filled, int slot, int count, float rho, bool root, bool full_gradient, "
      "float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "cbn_train(Tensor y, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor? x, Tensor? sample, "
      "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, int[] step, int[] start, "
      "Tensor? rows, Tensor? columns, Tensor(a!)? values, Tensor? dmean, Tensor(b!)? dvar, "
      "Tensor(c!)? running_mean, Tensor(d!)? running_var, Tensor(e!)? tracked, float? momentum, int filled, int slot, "
      "bool enters, float rho, bool root, bool full_gradient, float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

// RoIAlign on the CPU: Mask R-CNN (arXiv 1703.06870), section 3, over one map or a whole feature pyramid.
//
// K RoIs, C channels, (H, W) a map, (h, w) the bins. Averaging bilinear samples is separable, so the weights of
// all samples are merged into one short list per axis, and a RoI costs its cells, not its samples. Channels are
// the vectorised inner loop: maps are read as (H, W, C). Contiguous maps are copied to that layout once per
// call when the RoIs cover more cells than the map has, and read in place by a scalar loop otherwise.
// Forward splits RoIs over threads. Backward splits channels, so no two threads write one cell and the
// result does not depend on the number of threads' timing.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common.h"
#include "simd.h"

namespace mmdet {

// The merged weights of one axis of one RoI, listed by cell and by bin.
template <typename T>
struct AxisView {
  int num_cells, num_bins;
  const int *cell, *cell_begin, *cell_bin, *bin_begin, *bin_cell;
  const T *cell_weight, *bin_weight;
};

constexpr int kLanes = 32;

namespace base {
#define MMDET_FMA(a, b, c) ((a) * (b) + (c))
#include "roi_align_kernels.inl"
#undef MMDET_FMA
}  // namespace base

#if MMDET_X86_DISPATCH
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#define MMDET_FMA(a, b, c) fused(a, b, c)
#include "roi_align_kernels.inl"
#undef MMDET_FMA
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace {

template <typename T>
struct Axis {
  std::vector<int> cell, cell_begin, cell_bin, bin_begin, bin_cell, slot;
  std::vector<T> cell_weight, bin_weight;

  // start and bin in cells; `samples` evenly spaced in each bin, those off [-1, size] count as zero
  void build(T start, T bin, int bins, int64_t samples, int size) {
    bin_begin.assign(1, 0);
    bin_cell.clear();
    bin_weight.clear();
    const T share = T(1) / static_cast<T>(std::max<int64_t>(samples, 1));
    if (size == 0) samples = 0;
    for (int p = 0; p < bins; ++p) {
      const T base = start + static_cast<T>(p) * bin;
      int64_t first = 0, last = samples;
      if (samples > 2 * int64_t(size) + 8 && bin != T(0)) {  // a box far larger than the map: only samples near it count
        const double step = double(bin) / double(samples), slack = 2 + 1e-5 * (std::abs(double(base)) / std::abs(step));
        const double a = (-1 - double(base)) / step, b = (size - double(base)) / step;
        first = static_cast<int64_t>(std::clamp(std::min(a, b) - slack, 0.0, double(samples)));
        last = static_cast<int64_t>(std::clamp(std::max(a, b) + slack, 0.0, double(samples)));
      }
      for (int64_t i = first; i < last; ++i) {
        T at = base + (static_cast<T>(i) + T(0.5)) * bin / static_cast<T>(samples);
        if (!(at >= T(-1) && at <= static_cast<T>(size))) continue;  // also NaN
        at = std::max(at, T(0));
        const int low = std::min(static_cast<int>(at), size - 1);
        const T upper = low == size - 1 ? T(0) : at - static_cast<T>(low);
        add(low, (T(1) - upper) * share);
        if (upper > T(0)) add(low + 1, upper * share);
      }
      bin_begin.push_back(static_cast<int>(bin_cell.size()));
    }
    list_by_cell(bins);
  }

  AxisView<T> view() const {
    return {static_cast<int>(cell.size()), static_cast<int>(bin_begin.size()) - 1, cell.data(), cell_begin.data(),
            cell_bin.data(), bin_begin.data(), bin_cell.data(), cell_weight.data(), bin_weight.data()};
  }

 private:
  void add(int index, T weight) {  // neighbouring samples share cells: look back two entries of this bin
    const int n = static_cast<int>(bin_cell.size());
    for (int k = n - 1; k >= bin_begin.back() && k >= n - 2; --k)
      if (bin_cell[k] == index) {
        bin_weight[k] += weight;
        return;
      }
    bin_cell.push_back(index);
    bin_weight.push_back(weight);
  }

  void list_by_cell(int bins) {
    cell.clear();
    cell_begin.assign(1, 0);
    cell_bin.resize(bin_cell.size());
    cell_weight.resize(bin_cell.size());
    if (bin_cell.empty()) return;
    const auto range = std::minmax_element(bin_cell.begin(), bin_cell.end());
    const int lowest = *range.first;
    slot.assign(*range.second - lowest + 1, 0);
    for (int c : bin_cell) ++slot[c - lowest];
    for (int i = 0, total = 0; i < static_cast<int>(slot.size()); ++i) {
      const int count = slot[i];
      if (count > 0) {
        cell.push_back(lowest + i);
        cell_begin.push_back(total + count);
      }
      slot[i] = total;
      total += count;
    }
    for (int p = 0; p < bins; ++p)
      for (int i = bin_begin[p]; i < bin_begin[p + 1]; ++i) {
        const int k = slot[bin_cell[i] - lowest]++;
        cell_bin[k] = p;
        cell_weight[k] = bin_weight[i];
      }
  }
};

template <typename T>
struct RoI {
  int64_t batch = 0;
  int level = -1;  // -1: nothing to sample
  T y = 0, x = 0, bin_y = 0, bin_x = 0;
  int64_t samples_y = 0, samples_x = 0;

  int64_t cells() const {  // about how many it reads
    return static_cast<int64_t>(std::min<double>((samples_y + 2) * (samples_x + 2), 1e9));
  }
};

struct Map {
  int64_t height, width;
};

template <typename T>
int64_t samples_in(T side, int bins, int sampling_ratio) {
  if (sampling_ratio > 0) return sampling_ratio;
  return static_cast<int64_t>(std::clamp(std::ceil(side / static_cast<T>(bins)), T(0), T(1 << 30)));
}

// One row [batch, x1, y1, x2, y2] in the float arithmetic every RoIAlign shares; infinite and NaN rows are empty.
template <typename T>
RoI<T> read_roi(const T* row, const std::vector<double>& scales, const RoIRule& rule, int64_t batches, int bins_y,
                int bins_x) {
  RoI<T> roi;
  const T extra = static_cast<T>(rule.extra);
  const T x1 = row[1], y1 = row[2], x2 = row[3] + extra, y2 = row[4] + extra;
  int level = 0;
  if (scales.size() > 1) {
    const T side = std::sqrt((x2 - x1) * (y2 - y1)) / static_cast<T>(rule.finest_scale) + T(1e-6);
    const int top = static_cast<int>(scales.size()) - 1;
    while (level < top && side >= std::ldexp(T(1), level + 1)) ++level;  // floor(log2(side)), NaN on level 0
  }
  const T scale = static_cast<T>(scales[level]), shift = static_cast<T>(rule.shift);
  roi.x = x1 * scale - shift;
  roi.y = y1 * scale - shift;
  T width = x2 * scale - shift - roi.x, height = y2 * scale - shift - roi.y;
  if (!(std::isfinite(roi.x) && std::isfinite(roi.y) && std::isfinite(width) && std::isfinite(height))) return roi;
  const T floor = static_cast<T>(rule.floor);
  width = std::max(width, floor);
  height = std::max(height, floor);
  TORCH_CHECK_VALUE(row[0] >= T(0) && row[0] < static_cast<T>(batches), "roi_align: a box names picture ", row[0],
                    " of a batch of ", batches);
  roi.batch = static_cast<int64_t>(row[0]);
  roi.level = level;
  roi.bin_y = height / static_cast<T>(bins_y);
  roi.bin_x = width / static_cast<T>(bins_x);
  roi.samples_y = samples_in(height, bins_y, rule.sampling_ratio);
  roi.samples_x = samples_in(width, bins_x, rule.sampling_ratio);
  return roi;
}

template <typename T>
std::vector<RoI<T>> read_rois(const at::Tensor& rois, c10::ArrayRef<double> scales, const RoIRule& rule,
                              int64_t batches, int bins_y, int bins_x) {
  const T* rows = rois.const_data_ptr<T>();
  const std::vector<double> factors = scales.vec();
  std::vector<RoI<T>> result(rois.size(0));
  for (size_t k = 0; k < result.size(); ++k)
    result[k] = read_roi<T>(rows + 5 * k, factors, rule, batches, bins_y, bins_x);
  return result;
}

// (rows, columns) -> (columns, rows), in squares that stay in the first-level cache
template <typename T>
void transpose(const T* from, T* to, int64_t rows, int64_t columns, int64_t from_stride, int64_t to_stride) {
  constexpr int64_t kSide = 16;
  for (int64_t r = 0; r < rows; r += kSide)
    for (int64_t c = 0; c < columns; c += kSide)
      for (int64_t j = c; j < std::min(c + kSide, columns); ++j)
        for (int64_t i = r; i < std::min(r + kSide, rows); ++i) to[j * to_stride + i] = from[i * from_stride + j];
}

template <typename T>
at::Tensor forward(at::TensorList features, const at::Tensor& rois, c10::ArrayRef<double> scales, int h, int w,
                   const RoIRule& rule) {
  const int64_t batches = features[0].size(0), channels = features[0].size(1);
  const bool last = features[0].is_contiguous(at::MemoryFormat::ChannelsLast) && !features[0].is_contiguous();
  const auto format = last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor output = at::empty({rois.size(0), channels, h, w}, features[0].options(), format);
  if (output.numel() == 0) return output;

  const auto list = read_rois<T>(rois, scales, rule, batches, h, w);
  std::vector<int64_t> covered(features.size(), 0);
  for (const auto& roi : list)
    if (roi.level >= 0) covered[roi.level] += roi.cells();
  std::vector<at::Tensor> maps(features.size());
  std::vector<bool> strided(features.size(), false);
  for (size_t l = 0; l < maps.size(); ++l) {
    const auto& f = features[l];
    const bool ready = f.is_contiguous(at::MemoryFormat::ChannelsLast);
    strided[l] = !ready && covered[l] < f.size(0) * f.size(2) * f.size(3);
    maps[l] = covered[l] == 0 || strided[l] ? f : f.contiguous(at::MemoryFormat::ChannelsLast);
  }

  T* out = output.data_ptr<T>();
  const int64_t bins = int64_t(h) * w;
  at::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
    Axis<T> rows, columns;
    std::vector<T> tile(last ? 0 : bins * channels);
    for (int64_t k = begin; k < end; ++k) {
      const auto& roi = list[k];
      T* result = out + k * bins * channels;
      if (roi.level < 0) {
        std::fill_n(result, bins * channels, T(0));
        continue;
      }
      const at::Tensor& map = maps[roi.level];
      rows.build(roi.y, roi.bin_y, h, roi.samples_y, static_cast<int>(map.size(2)));
      columns.build(roi.x, roi.bin_x, w, roi.samples_x, static_cast<int>(map.size(3)));
      const T* source = map.const_data_ptr<T>() + roi.batch * map.stride(0);
      T* target = last ? result : tile.data();
      std::fill_n(target, bins * channels, T(0));
      if (strided[roi.level]) {
        const auto by_row = rows.view(), by_column = columns.view();
        for (int64_t c = 0; c < channels; ++c)
          for (int r = 0; r < by_row.num_cells; ++r) {
            const T* row = source + c * map.stride(1) + by_row.cell[r] * map.stride(2);
            for (int x = 0; x < w; ++x) {
              T sum = 0;
              for (int i = by_column.bin_begin[x]; i < by_column.bin_begin[x + 1]; ++i)
                sum += by_column.bin_weight[i] * row[by_column.bin_cell[i] * map.stride(3)];
              for (int j = by_row.cell_begin[r]; j < by_row.cell_begin[r + 1]; ++j)
                target[(by_row.cell_bin[j] * w + x) * channels + c] += by_row.cell_weight[j] * sum;
            }
          }
      } else {
        MMDET_DISPATCH(forward_tile(source, map.stride(2), map.stride(3), rows.view(), columns.view(), channels,
                                    target, w));
      }
      if (!last) transpose(tile.data(), result, bins, channels, channels, bins);
    }
  });
  return output;
}

template <typename T>
std::vector<at::Tensor> backward(const at::Tensor& grad, const at::Tensor& rois, at::IntArrayRef shapes,
                                 c10::ArrayRef<double> scales, const RoIRule& rule, bool channels_last) {
  const int64_t levels = static_cast<int64_t>(shapes.size()) / 4, batches = shapes[0], channels = shapes[1];
  const int h = static_cast<int>(grad.size(2)), w = static_cast<int>(grad.size(3));
  std::vector<at::Tensor> result(levels);
  for (int64_t l = 0; l < levels; ++l)
    result[l] = at::empty(shapes.slice(4 * l, 4), grad.options(), at::MemoryFormat::ChannelsLast).zero_();
  const int64_t bins = int64_t(h) * w;
  if (grad.numel() > 0) {
    const auto list = read_rois<T>(rois, scales, rule, batches, h, w);
    const bool last = grad.is_contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor source = last ? grad : grad.contiguous();
    const T* g = source.const_data_ptr<T>();
    // a cache line of channels at least, so that threads do not share one
    const int64_t block = std::max<int64_t>(16, (channels + at::get_num_threads() - 1) / at::get_num_threads());
    at::parallel_for(0, (channels + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
      const int64_t c0 = begin * block, n = std::min(end * block, channels) - c0;
      Axis<T> rows, columns;
      std::vector<T> tile(bins * n), scratch(w * n);
      for (size_t k = 0; k < list.size(); ++k) {
        const auto& roi = list[k];
        if (roi.level < 0) continue;
        at::Tensor& map = result[roi.level];
        rows.build(roi.y, roi.bin_y, h, roi.samples_y, static_cast<int>(map.size(2)));
        columns.build(roi.x, roi.bin_x, w, roi.samples_x, static_cast<int>(map.size(3)));
        if (last) {
          for (int64_t b = 0; b < bins; ++b) std::copy_n(g + (k * bins + b) * channels + c0, n, tile.data() + b * n);
        } else {
          transpose(g + (k * channels + c0) * bins, tile.data(), n, bins, bins, n);
        }
        MMDET_DISPATCH(backward_tile(map.data_ptr<T>() + roi.batch * map.stride(0) + c0, map.stride(2),
                                     map.stride(3), rows.view(), columns.view(), n, tile.data(), w,
                                     scratch.data()));
      }
    });
  }
  if (!channels_last)
    for (auto& map : result) map = map.contiguous();
  return result;
}

void check(at::TensorList features, const at::Tensor& rois, c10::ArrayRef<double> scales, int64_t h, int64_t w) {
  TORCH_CHECK_VALUE(!features.empty() && features.size() == scales.size(),
                    "roi_align: needs one spatial scale per map, got ", features.size(), " maps and ", scales.size(),
                    " scales");
  check_boxes(rois, 5, "roi_align");
  TORCH_CHECK_VALUE(h > 0 && w > 0 && h * w < (1 << 20), "roi_align: output size ", h, " x ", w, " is out of range");
  for (const auto& f : features) {
    TORCH_CHECK_VALUE(f.dim() == 4 && f.size(0) == features[0].size(0) && f.size(1) == features[0].size(1),
                      "roi_align: maps must be (N, C, H, W) with equal N and C, got ", f.sizes());
    TORCH_CHECK_VALUE(f.device().is_cpu() && rois.device().is_cpu() && f.scalar_type() == features[0].scalar_type(),
                      "roi_align: maps and boxes must share device and maps their dtype");
    check_int32(f.size(2), "map height", "roi_align");
    check_int32(f.size(3), "map width", "roi_align");
  }
}

at::ScalarType compute_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, c10::ArrayRef<double> scales, int64_t h,
                     int64_t w, int64_t sampling_ratio, bool aligned, bool legacy, double finest_scale) {
  check(features, rois, scales, h, w);
  const RoIRule rule(sampling_ratio, aligned, legacy, finest_scale);
  const auto type = features[0].scalar_type(), inner = compute_type(type);
  const at::Tensor boxes = rois.to(inner).contiguous();
  std::vector<at::Tensor> maps;
  for (const auto& f : features) maps.push_back(f.to(inner));
  return AT_DISPATCH_FLOATING_TYPES(inner, "roi_align", [&] {
           return forward<scalar_t>(maps, boxes, scales, static_cast<int>(h), static_cast<int>(w), rule);
         }).to(type);
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois, at::IntArrayRef shapes,
                                           c10::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned,
                                           bool legacy, double finest_scale, bool channels_last) {
  TORCH_CHECK_VALUE(shapes.size() == 4 * scales.size() && !scales.empty(),
                    "roi_align_backward: needs four sizes and one scale per map");
  TORCH_CHECK_VALUE(grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == shapes[1],
                    "roi_align_backward: the gradient ", grad.sizes(), " does not fit the boxes ", rois.sizes());
  check_boxes(rois, 5, "roi_align_backward");
  const RoIRule rule(sampling_ratio, aligned, legacy, finest_scale);
  const auto type = grad.scalar_type(), inner = compute_type(type);
  const at::Tensor boxes = rois.to(inner).contiguous();
  auto result = AT_DISPATCH_FLOATING_TYPES(inner, "roi_align_backward", [&] {
    return backward<scalar_t>(grad.to(inner), boxes, shapes, scales, rule, channels_last);
  });
  for (auto& map : result) map = map.to(type);
  return result;
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CPU, m) {
  m.impl("roi_align", mmdet::roi_align);
  m.impl("roi_align_backward", mmdet::roi_align_backward);
}

// RoIAlign on the CPU: Mask R-CNN (arXiv 1703.06870), section 3, over one map or a whole feature pyramid.
//
// K RoIs, C channels, (H, W) a map, (h, w) the bins. Three ideas make it fast:
// - Averaging bilinear samples is separable: the weights of all samples are merged into one short list per axis, and
//   a RoI costs its cells, not its samples.
// - A block of channels, two cache lines, is the vectorised inner loop. The cells that a chunk of RoIs touches are
//   packed as (cells, block) once for all of them; they stay in cache, so the map is read from memory once.
//   RoIs that lie too far apart to share go to chunks of their own, down to one RoI.
// - Forward spreads (block, chunk) pairs over threads. Backward spreads (image, block) pairs, so that no two threads
//   write one cell and the result is the same at any number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "../common.h"
#include "fresh.h"
#include "simd.h"

namespace mmdet {

// The merged weights of one axis of one RoI, listed by cell and by bin.
template <typename T>
struct AxisView {
  int num_cells, num_bins;
  const int *cell, *cell_begin, *cell_bin, *bin_begin, *bin_cell;
  const T *cell_weight, *bin_weight;
};

template <typename T>
constexpr int lanes() {
  return 128 / sizeof(T);
}

namespace base {
#define MMDET_VECTOR_BYTES 16
#include "roi_align_kernels.inl"
#undef MMDET_VECTOR_BYTES
}  // namespace base

#if MMDET_X86_DISPATCH
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define MMDET_VECTOR_BYTES 32
#include "roi_align_kernels.inl"
#undef MMDET_VECTOR_BYTES
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

  // Numbers the cells by their place in a packed copy.
  void renumber(const std::vector<int>& place) {
    for (int& c : cell) c = place[c];
    for (int& c : bin_cell) c = place[c];
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
  int64_t image = 0;
  int level = -1;  // -1: nothing to sample
  T y = 0, x = 0, bin_y = 0, bin_x = 0;
  int64_t samples_y = 0, samples_x = 0;
  Axis<T> rows, columns;

  int64_t cells() const { return static_cast<int64_t>(rows.cell.size() * columns.cell.size()); }
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
  TORCH_CHECK_VALUE(row[0] >= T(0) && row[0] < static_cast<T>(batches), "roi_align: a box names image ", row[0],
                    " of a batch of ", batches);
  roi.image = static_cast<int64_t>(row[0]);
  roi.level = level;
  roi.bin_y = height / static_cast<T>(bins_y);
  roi.bin_x = width / static_cast<T>(bins_x);
  roi.samples_y = samples_in(height, bins_y, rule.sampling_ratio);
  roi.samples_x = samples_in(width, bins_x, rule.sampling_ratio);
  return roi;
}

// RoIs of one image and level that share a packed copy of the cells in `rows` x `columns`
struct Chunk {
  int64_t image;
  int level;
  std::vector<int64_t> rois;
  std::vector<int> rows, columns;
};

template <typename T>
class Plan {
 public:
  std::vector<RoI<T>> rois;
  std::vector<Chunk> chunks;
  int64_t most_cells = 0;

  // sizes: (H, W) of each level
  Plan(const at::Tensor& boxes, c10::ArrayRef<double> scales, const RoIRule& rule, int64_t images, int h, int w,
       const std::vector<std::pair<int, int>>& sizes) {
    const T* rows = boxes.const_data_ptr<T>();
    const std::vector<double> factors = scales.vec();
    rois.resize(boxes.size(0));
    at::parallel_for(0, boxes.size(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        auto& roi = rois[k];
        roi = read_roi<T>(rows + 5 * k, factors, rule, images, h, w);
        if (roi.level < 0) continue;
        roi.rows.build(roi.y, roi.bin_y, h, roi.samples_y, sizes[roi.level].first);
        roi.columns.build(roi.x, roi.bin_x, w, roi.samples_x, sizes[roi.level].second);
      }
    });
    const int64_t levels = static_cast<int64_t>(sizes.size());
    std::vector<std::vector<int64_t>> groups(images * levels);
    for (size_t k = 0; k < rois.size(); ++k)
      if (rois[k].level >= 0) groups[rois[k].image * levels + rois[k].level].push_back(static_cast<int64_t>(k));
    for (size_t g = 0; g < groups.size(); ++g)
      if (!groups[g].empty()) split(groups[g], g / levels, static_cast<int>(g % levels), sizes[g % levels]);
  }

 private:
  // One chunk when sharing reads no more cells than each RoI on its own would, else two halves
  void split(std::vector<int64_t>& members, int64_t image, int level, std::pair<int, int> size) {
    std::vector<int> row_place(size.first, -1), column_place(size.second, -1);
    int64_t alone = 0;
    for (int64_t k : members) {
      for (int c : rois[k].rows.cell) row_place[c] = 0;
      for (int c : rois[k].columns.cell) column_place[c] = 0;
      alone += rois[k].cells();
    }
    const auto used = [](const std::vector<int>& place) { return std::count(place.begin(), place.end(), 0); };
    if (members.size() > 1 && used(row_place) * used(column_place) > alone) {
      const bool by_row = used(row_place) > used(column_place);
      const auto middle = members.begin() + static_cast<int64_t>(members.size()) / 2;
      const auto centre = [&](int64_t k) {
        const auto& cell = by_row ? rois[k].rows.cell : rois[k].columns.cell;
        return cell.empty() ? 0 : cell.front() + cell.back();
      };
      std::nth_element(members.begin(), middle, members.end(), [&](int64_t a, int64_t b) {
        return std::make_pair(centre(a), a) < std::make_pair(centre(b), b);
      });
      std::vector<int64_t> rest(middle, members.end());
      members.erase(middle, members.end());
      split(members, image, level, size);
      split(rest, image, level, size);
      return;
    }
    Chunk chunk{image, level, std::move(members), {}, {}};
    number(row_place, chunk.rows);
    number(column_place, chunk.columns);
    // neighbours follow each other, so that their common cells are still in the nearest cache
    std::sort(chunk.rois.begin(), chunk.rois.end(), [&](int64_t a, int64_t b) {
      return std::make_pair(rois[a].y, a) < std::make_pair(rois[b].y, b);
    });
    for (int64_t k : chunk.rois) {
      rois[k].rows.renumber(row_place);
      rois[k].columns.renumber(column_place);
    }
    most_cells = std::max(most_cells, static_cast<int64_t>(chunk.rows.size() * chunk.columns.size()));
    chunks.push_back(std::move(chunk));
  }

  static void number(std::vector<int>& place, std::vector<int>& cells) {
    for (size_t c = 0; c < place.size(); ++c)
      if (place[c] == 0) {
        place[c] = static_cast<int>(cells.size());
        cells.push_back(static_cast<int>(c));
      }
  }
};

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns, converting on the way
template <typename From, typename To>
void transpose(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t rows, int64_t columns) {
  int64_t i = 0;
#ifdef __SSE__
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float>) {
    for (; i + 4 <= rows; i += 4) {
      int64_t j = 0;
      for (; j + 4 <= columns; j += 4) {
        __m128 a = _mm_loadu_ps(from + i * from_stride + j), b = _mm_loadu_ps(from + (i + 1) * from_stride + j);
        __m128 c = _mm_loadu_ps(from + (i + 2) * from_stride + j), d = _mm_loadu_ps(from + (i + 3) * from_stride + j);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(to + j * to_stride + i, a);
        _mm_storeu_ps(to + (j + 1) * to_stride + i, b);
        _mm_storeu_ps(to + (j + 2) * to_stride + i, c);
        _mm_storeu_ps(to + (j + 3) * to_stride + i, d);
      }
      for (; j < columns; ++j)
        for (int64_t k = i; k < i + 4; ++k) to[j * to_stride + k] = from[k * from_stride + j];
    }
  }
#endif
  for (; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * to_stride + i] = static_cast<To>(from[i * from_stride + j]);
}

// Runs of neighbouring cells: work(first place, first cell, length)
template <typename Work>
void for_each_run(const std::vector<int>& cells, const Work& work) {
  for (size_t first = 0; first < cells.size();) {
    size_t last = first + 1;
    while (last < cells.size() && cells[last] == cells[last - 1] + 1) ++last;
    work(static_cast<int64_t>(first), cells[first], static_cast<int64_t>(last - first));
    first = last;
  }
}

// copy (cells of the chunk, lanes) from n channels that begin at `map`; lanes past n are zero
template <typename S, typename T>
void pack(const S* map, at::IntArrayRef strides, const Chunk& chunk, int64_t n, T* copy) {
  constexpr int kLanes = lanes<T>();
  if (n < kLanes) std::fill_n(copy, static_cast<int64_t>(chunk.rows.size() * chunk.columns.size()) * kLanes, T(0));
  for (int r : chunk.rows) {
    const S* row = map + r * strides[2];
    if (strides[3] == 1) {
      for_each_run(chunk.columns, [&](int64_t place, int cell, int64_t length) {
        transpose(row + cell, strides[1], copy + place * kLanes, kLanes, n, length);
      });
    } else {
      for (size_t q = 0; q < chunk.columns.size(); ++q)
        for (int64_t c = 0; c < n; ++c)
          copy[q * kLanes + c] = static_cast<T>(row[chunk.columns[q] * strides[3] + c * strides[1]]);
    }
    copy += chunk.columns.size() * kLanes;
  }
}

// The reverse, adding: map[cell] += copy[cell]
template <typename S, typename T>
void unpack(const T* copy, const Chunk& chunk, int64_t n, S* map, at::IntArrayRef strides) {
  constexpr int kLanes = lanes<T>();
  std::vector<T> lines(chunk.columns.size() * kLanes);
  const int64_t width = static_cast<int64_t>(chunk.columns.size());
  for (int r : chunk.rows) {
    S* row = map + r * strides[2];
    if (strides[1] == 1) {
      for (int64_t q = 0; q < width; ++q) {
        S* to = row + chunk.columns[q] * strides[3];
        for (int64_t c = 0; c < n; ++c) to[c] = static_cast<S>(static_cast<T>(to[c]) + copy[q * kLanes + c]);
      }
    } else {
      transpose(copy, kLanes, lines.data(), width, width, n);
      for (int64_t c = 0; c < n; ++c)
        for_each_run(chunk.columns, [&](int64_t place, int cell, int64_t length) {
          S* to = row + c * strides[1] + cell * strides[3];
          const T* from = lines.data() + c * width + place;
          for (int64_t i = 0; i < length; ++i) to[i] = static_cast<S>(static_cast<T>(to[i]) + from[i]);
        });
    }
    copy += width * kLanes;
  }
}

template <typename S>
at::Tensor forward(at::TensorList features, const at::Tensor& boxes, c10::ArrayRef<double> scales, int h, int w,
                   const RoIRule& rule) {
  using T = typename Compute<S>::type;
  constexpr int kLanes = lanes<T>();
  const int64_t channels = features[0].size(1), bins = int64_t(h) * w;
  const bool last = features[0].is_contiguous(at::MemoryFormat::ChannelsLast) && !features[0].is_contiguous();
  at::Tensor output = at::empty({boxes.size(0), channels, h, w}, features[0].options(),
                                last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return output;
  prefer_large_pages(output);
  std::vector<std::pair<int, int>> sizes;
  for (const auto& f : features) sizes.emplace_back(f.size(2), f.size(3));
  const Plan<T> plan(boxes, scales, rule, features[0].size(0), h, w, sizes);
  const int64_t num_chunks = static_cast<int64_t>(plan.chunks.size());

  S* out = output.data_ptr<S>();
  for (size_t k = 0; k < plan.rois.size(); ++k)
    if (plan.rois[k].level < 0) std::fill_n(out + k * channels * bins, channels * bins, S(0));
  const int64_t blocks = (channels + kLanes - 1) / kLanes;
  at::parallel_for(0, blocks * num_chunks, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> copy(new T[plan.most_cells * kLanes]);
    std::vector<T> tile(bins * kLanes);
    for (int64_t item = begin; item < end; ++item) {
      const Chunk& chunk = plan.chunks[item % num_chunks];
      const int64_t c0 = item / num_chunks * kLanes, n = std::min<int64_t>(kLanes, channels - c0);
      const at::Tensor& map = features[chunk.level];
      pack(map.const_data_ptr<S>() + chunk.image * map.stride(0) + c0 * map.stride(1), map.strides(), chunk, n,
           copy.get());
      const int64_t row_stride = static_cast<int64_t>(chunk.columns.size()) * kLanes;
      for (int64_t k : chunk.rois) {
        const auto& roi = plan.rois[k];
        std::fill(tile.begin(), tile.end(), T(0));
        MMDET_DISPATCH(forward_tile<T>(copy.get(), row_stride, kLanes, roi.rows.view(), roi.columns.view(), tile.data()));
        if (last) {
          S* to = out + k * bins * channels + c0;
          for (int64_t b = 0; b < bins; ++b, to += channels)
            for (int64_t c = 0; c < n; ++c) to[c] = static_cast<S>(tile[b * kLanes + c]);
        } else {
          transpose(tile.data(), kLanes, out + (k * channels + c0) * bins, bins, bins, n);
        }
      }
    }
  });
  return output;
}

template <typename S>
std::vector<at::Tensor> backward(const at::Tensor& grad, const at::Tensor& boxes, at::IntArrayRef shapes,
                                 c10::ArrayRef<double> scales, const RoIRule& rule, bool channels_last) {
  using T = typename Compute<S>::type;
  constexpr int kLanes = lanes<T>();
  const int64_t levels = static_cast<int64_t>(shapes.size()) / 4, images = shapes[0], channels = shapes[1];
  const int h = static_cast<int>(grad.size(2)), w = static_cast<int>(grad.size(3));
  const int64_t bins = int64_t(h) * w;
  std::vector<at::Tensor> result(levels);
  std::vector<std::pair<int, int>> sizes;
  for (int64_t l = 0; l < levels; ++l) {
    const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    result[l] = at::empty(shapes.slice(4 * l, 4), grad.options(), format).zero_();
    sizes.emplace_back(result[l].size(2), result[l].size(3));
  }
  if (grad.numel() == 0 || images == 0) return result;
  const Plan<T> plan(boxes, scales, rule, images, h, w, sizes);
  const S* g = grad.const_data_ptr<S>();
  const bool dense_lanes = grad.stride(1) == 1 && channels > 1;
  const int64_t blocks = (channels + kLanes - 1) / kLanes;
  at::parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> copy(new T[plan.most_cells * kLanes]);
    std::vector<T> tile(bins * kLanes, T(0)), scratch(w * kLanes);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t c0 = item % blocks * kLanes, n = std::min<int64_t>(kLanes, channels - c0);
      for (const Chunk& chunk : plan.chunks) {
        if (chunk.image != item / blocks) continue;
        const int64_t row_stride = static_cast<int64_t>(chunk.columns.size()) * kLanes;
        std::fill_n(copy.get(), static_cast<int64_t>(chunk.rows.size()) * row_stride, T(0));
        for (int64_t k : chunk.rois) {
          const auto& roi = plan.rois[k];
          const S* from = g + k * grad.stride(0) + c0 * grad.stride(1);
          if (!dense_lanes && grad.stride(3) == 1 && grad.stride(2) == w) {
            transpose(from, grad.stride(1), tile.data(), kLanes, n, bins);
          } else {
            for (int64_t y = 0; y < h; ++y)
              for (int64_t x = 0; x < w; ++x)
                for (int64_t c = 0; c < n; ++c)
                  tile[(y * w + x) * kLanes + c] =
                      static_cast<T>(from[y * grad.stride(2) + x * grad.stride(3) + c * grad.stride(1)]);
          }
          MMDET_DISPATCH(backward_tile<T>(copy.get(), row_stride, kLanes, roi.rows.view(), roi.columns.view(),
                                          tile.data(), scratch.data()));
        }
        at::Tensor& map = result[chunk.level];
        unpack(copy.get(), chunk, n, map.data_ptr<S>() + chunk.image * map.stride(0) + c0 * map.stride(1),
               map.strides());
      }
    }
  });
  return result;
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, c10::ArrayRef<double> scales, int64_t h,
                     int64_t w, int64_t sampling_ratio, bool aligned, bool legacy, double finest_scale) {
  check_maps(features, rois, scales, h, w);
  const RoIRule rule(sampling_ratio, aligned, legacy, finest_scale);
  const auto type = features[0].scalar_type();
  const at::Tensor boxes = rois.to(type == at::kDouble ? at::kDouble : at::kFloat).contiguous();
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_align", [&] {
    return forward<scalar_t>(features, boxes, scales, static_cast<int>(h), static_cast<int>(w), rule);
  });
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois, at::IntArrayRef shapes,
                                           c10::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned,
                                           bool legacy, double finest_scale, bool channels_last) {
  check_gradient(grad, rois, shapes, scales);
  const RoIRule rule(sampling_ratio, aligned, legacy, finest_scale);
  const auto type = grad.scalar_type();
  const at::Tensor boxes = rois.to(type == at::kDouble ? at::kDouble : at::kFloat).contiguous();
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_align_backward", [&] {
    return backward<scalar_t>(grad, boxes, shapes, scales, rule, channels_last);
  });
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CPU, m) {
  m.impl("roi_align", mmdet::roi_align);
  m.impl("roi_align_backward", mmdet::roi_align_backward);
}

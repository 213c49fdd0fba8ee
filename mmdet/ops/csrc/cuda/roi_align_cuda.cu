// RoIAlign on CUDA over a pyramid, maps of any strides: one block takes one RoI and a group of channels.
//
// As on the CPU the averaged bilinear samples of an axis are merged into short lists in shared memory, computed once
// for all channels of a block. Forward they are ordered by bin (cell, weight): a thread sums the cells of its bin.
// Backward they are ordered by cell (bin, weight): a thread sums the bins of its cell and adds once, which takes fewer
// atomics than one per bin and cell, on neighbouring addresses. Threads run along channels where channels are
// contiguous, along bins or cells otherwise. In order (deterministic), a block takes all RoIs of an image one after
// another for a few channels, and a thread owns its cell.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../common.h"

namespace mmdet {
namespace {

constexpr int kMaxLevels = 8;
constexpr int kThreads = 256;
constexpr int kHalf = kThreads / 2;  // builds the lists of one axis

template <typename S>
struct Maps {
  S* data[kMaxLevels];
  int height[kMaxLevels], width[kMaxLevels];
  int64_t image_stride[kMaxLevels], channel_stride[kMaxLevels], row_stride[kMaxLevels], cell_stride[kMaxLevels];
  double scale[kMaxLevels];
  int levels;
};

template <typename T>
struct Rule {
  T shift, extra, floor, finest_scale;
  int sampling_ratio;
};

// A RoI's bins along one axis, in cells
template <typename T>
struct Span {
  T start, bin;
  int64_t samples;  // in each bin
};

// Reads the span of rows or of columns; the level to sample, or -1: nothing
template <typename T, typename S>
__device__ int read_roi(const T* row, const Maps<S>& maps, const Rule<T>& rule, int images, bool of_rows, int bins,
                        Span<T>& span) {
  const T left = row[1], top = row[2], right = row[3] + rule.extra, bottom = row[4] + rule.extra;
  int level = 0;
  if (maps.levels > 1) {
    const T side = sqrt((right - left) * (bottom - top)) / rule.finest_scale + T(1e-6);
    for (T bound = 2; level < maps.levels - 1 && side >= bound; bound *= 2) ++level;
  }
  const T scale = static_cast<T>(maps.scale[level]);
  const T x = left * scale - rule.shift, wide = right * scale - rule.shift - x;
  const T y = top * scale - rule.shift, high = bottom * scale - rule.shift - y;
  if (!(isfinite(x) && isfinite(wide) && isfinite(y) && isfinite(high))) return -1;
  if (!(row[0] >= T(0) && row[0] < static_cast<T>(images))) return -1;  // no message without a host sync: zeros
  const T side = of_rows ? high : wide;
  span.start = of_rows ? y : x;
  span.bin = (side < rule.floor ? rule.floor : side) / static_cast<T>(bins);
  const T adaptive = ceil(span.bin);
  span.samples = rule.sampling_ratio > 0 ? rule.sampling_ratio
                 : adaptive > T(0)       ? static_cast<int64_t>(adaptive < T(1 << 30) ? adaptive : T(1 << 30))
                                         : 0;
  return level;
}

// Calls found(cell, weight) for the merged samples of one bin, cells ascending.
template <typename T, typename Found>
__device__ void merged_samples(const Span<T>& span, int size, int p, Found found) {
  const T bin = span.bin;
  const int64_t samples = span.samples;
  if (size == 0 || samples <= 0) return;
  const T base = span.start + static_cast<T>(p) * bin, share = T(1) / static_cast<T>(samples);
  int64_t first = 0, last = samples;
  if (samples > 2 * int64_t(size) + 8 && bin != T(0)) {  // a box far larger than the map: only samples near it count
    const double step = double(bin) / double(samples), slack = 2 + 1e-5 * (fabs(double(base)) / fabs(step));
    const double a = (-1 - double(base)) / step, b = (size - double(base)) / step;
    first = static_cast<int64_t>(fmin(fmax(fmin(a, b) - slack, 0.0), double(samples)));
    last = static_cast<int64_t>(fmin(fmax(fmax(a, b) + slack, 0.0), double(samples)));
  }
  int cell = -1;  // weights gathered so far for `cell` and `cell + 1`
  T here = 0, next = 0;
  for (int64_t n = first; n < last; ++n) {
    const int64_t i = bin < T(0) ? first + last - 1 - n : n;
    T at = base + (static_cast<T>(i) + T(0.5)) * bin / static_cast<T>(samples);
    if (!(at >= T(-1) && at <= static_cast<T>(size))) continue;
    at = at < T(0) ? T(0) : at;
    int low = static_cast<int>(at);
    low = low < size - 1 ? low : size - 1;
    const T upper = low == size - 1 ? T(0) : at - static_cast<T>(low);
    if (low != cell) {
      if (here != T(0)) found(cell, here);
      if (low == cell + 1) {
        here = next;
      } else {
        if (next != T(0)) found(cell + 1, next);
        here = 0;
      }
      next = 0;
      cell = low;
    }
    here += (T(1) - upper) * share;
    next += upper * share;
  }
  if (here != T(0)) found(cell, here);
  if (next != T(0)) found(cell + 1, next);
}

template <typename T>
struct alignas(2 * sizeof(T)) Tap {  // one load
  T weight;
  int at;
};

// The lists of one axis in shared memory, with room for `room` taps
template <typename T>
struct Axis {
  Tap<T>*by_bin, *by_cell;      // `at` is a cell; `at` is a bin
  int *bin_begin, *cell_begin;  // where the list of bin p, of the i-th touched cell begins
  int *cell, *cells;            // the touched cells, ascending; how many

  __host__ __device__ static size_t bytes(size_t bins, size_t room, bool backward) {
    const size_t taps = backward ? 2 * room : room, numbers = bins + 1 + (backward ? 2 * room + 2 : 0);
    return taps * sizeof(Tap<T>) + (numbers + 3) / 4 * 4 * sizeof(int);  // the next axis aligned
  }

  __device__ Axis(unsigned char* shared, int bins, int room, bool backward) {
    by_bin = reinterpret_cast<Tap<T>*>(shared);
    by_cell = by_bin + room;
    bin_begin = reinterpret_cast<int*>(backward ? by_cell + room : by_cell);
    cell_begin = bin_begin + bins + 1;
    cell = cell_begin + room + 1;
    cells = cell + room;
  }

  // By half a block while the other half builds the other axis; all meet at the end. The first barrier also lets the
  // RoI before be finished: what stands above it writes only bin_begin, which the backward pass has done with.
  __device__ void build(const Span<T>& span, int bins, int size, int room, bool backward) const {
    const int t = threadIdx.x % kHalf;
    for (int p = t; p < bins; p += kHalf) {
      int count = 0;
      merged_samples(span, size, p, [&](int, T) { ++count; });
      bin_begin[p + 1] = count;
    }
    __syncthreads();
    if (t == 0) {
      bin_begin[0] = 0;
      for (int p = 0; p < bins; ++p) bin_begin[p + 1] = min(bin_begin[p] + bin_begin[p + 1], room);
    }
    __syncthreads();
    for (int p = t; p < bins; p += kHalf) {
      int k = bin_begin[p];
      const int end = bin_begin[p + 1];
      merged_samples(span, size, p, [&](int c, T w) {
        if (k < end) by_bin[k++] = {w, c};
      });
    }
    __syncthreads();
    if (!backward) return;
    const int total = bin_begin[bins];
    for (int i = t; i < total; i += kHalf) {
      const Tap<T> tap = by_bin[i];
      int before = 0, p = 0;
      for (int j = 0; j < total; ++j) before += by_bin[j].at < tap.at || (by_bin[j].at == tap.at && j < i);
      while (bin_begin[p + 1] <= i) ++p;
      by_cell[before] = {tap.weight, p};
      cell[before] = tap.at;
    }
    __syncthreads();
    if (t == 0) {
      int n = 0, last = -1;
      for (int i = 0; i < total; ++i)
        if (cell[i] != last) {
          last = cell[i];
          cell_begin[n] = i;
          cell[n++] = last;
        }
      cell_begin[n] = total;
      *cells = n;
    }
    __syncthreads();
  }
};

// Room for an axis: bins share at most two cells with their neighbours, so all lists together hold at most the map's
// cells and three more a bin.
int64_t room_for(int bins, int largest, int sampling_ratio) {
  const int64_t by_cells = int64_t(largest) + 3 * int64_t(bins);
  const int64_t by_samples = sampling_ratio > 0 ? 2 * int64_t(sampling_ratio) * bins : by_cells;
  return std::min(by_cells, by_samples);
}

// Element e of a block of (channels, places): channels fastest where they are contiguous, places fastest otherwise
__device__ inline void locate(unsigned e, unsigned channels, unsigned places, bool channels_fastest, int& c, int& place) {
  const unsigned fastest = channels_fastest ? channels : places;
  const int slow = static_cast<int>(e / fastest), fast = static_cast<int>(e % fastest);
  c = channels_fastest ? fast : slow;
  place = channels_fastest ? slow : fast;
}

template <typename S, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Maps<const S> maps, const T* boxes, Rule<T> rule, int images, int channels, int h, int w, int group,
                   int groups, int room_y, int room_x, S* out, int64_t out_channel, int64_t out_bin) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t k = blockIdx.x / groups;
  const int c0 = static_cast<int>(blockIdx.x % groups) * group, n = min(group, channels - c0);
  const int num_bins = h * w;
  const bool of_rows = threadIdx.x < kHalf;
  Span<T> span;
  const int l = read_roi<T, const S>(boxes + 5 * k, maps, rule, images, of_rows, of_rows ? h : w, span);
  S* target = out + k * channels * num_bins + c0 * out_channel;
  const bool channels_fastest = out_channel == 1;
  if (l < 0) {
    for (unsigned e = threadIdx.x; e < unsigned(n * num_bins); e += blockDim.x) {
      int c, bin;
      locate(e, n, num_bins, channels_fastest, c, bin);
      target[c * out_channel + bin * out_bin] = static_cast<S>(0);
    }
    return;
  }
  unsigned char* second = shared + Axis<T>::bytes(h, room_y, false);
  const Axis<T> rows(shared, h, room_y, false), columns(second, w, room_x, false);
  const int room = of_rows ? room_y : room_x, bins = of_rows ? h : w, size = of_rows ? maps.height[l] : maps.width[l];
  Axis<T>(of_rows ? shared : second, bins, room, false).build(span, bins, size, room, false);
  const S* map = maps.data[l] + static_cast<int>(boxes[5 * k]) * maps.image_stride[l] + c0 * maps.channel_stride[l];
  const int64_t channel_stride = maps.channel_stride[l], row_stride = maps.row_stride[l];
  const int64_t cell_stride = maps.cell_stride[l];
  for (unsigned e = threadIdx.x; e < unsigned(n * num_bins); e += blockDim.x) {
    int c, bin;
    locate(e, n, num_bins, channels_fastest, c, bin);
    const int py = bin / w, px = bin % w, first = columns.bin_begin[px], last = columns.bin_begin[px + 1];
    const S* plane = map + c * channel_stride;
    T sum = 0;
    for (int i = rows.bin_begin[py]; i < rows.bin_begin[py + 1]; ++i) {
      const Tap<T> down = rows.by_bin[i];
      const S* row = plane + down.at * row_stride;
      T across = 0;
      for (int j = first; j < last; ++j)
        across += columns.by_bin[j].weight * static_cast<T>(row[columns.by_bin[j].at * cell_stride]);
      sum += down.weight * across;
    }
    target[c * out_channel + bin * out_bin] = static_cast<S>(sum);
  }
}

// kInOrder: one block for an image and a group of channels, all RoIs in order; else one for a RoI and a group
template <typename S, typename T, bool kInOrder>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Maps<T> maps, const T* boxes, int64_t num_rois, Rule<T> rule, int images, int channels, int h,
                    int w, int group, int groups, int room_y, int room_x, const S* grad, int64_t grad_roi,
                    int64_t grad_channel, int64_t grad_y, int64_t grad_x, bool channels_fastest) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int c0 = static_cast<int>(blockIdx.x % groups) * group, n = min(group, channels - c0);
  const int64_t own = blockIdx.x / groups, begin = kInOrder ? 0 : own, end = kInOrder ? num_rois : own + 1;
  unsigned char* second = shared + Axis<T>::bytes(h, room_y, true);
  const Axis<T> rows(shared, h, room_y, true), columns(second, w, room_x, true);
  const bool of_rows = threadIdx.x < kHalf;
  const int room = of_rows ? room_y : room_x, bins = of_rows ? h : w;
  for (int64_t k = begin; k < end; ++k) {
    Span<T> span;
    const int l = read_roi<T, T>(boxes + 5 * k, maps, rule, images, of_rows, bins, span);
    if (l < 0) continue;  // the same for all threads of the block
    const int image = static_cast<int>(boxes[5 * k]);
    if (kInOrder && image != own) continue;
    Axis<T>(of_rows ? shared : second, bins, room, true)
        .build(span, bins, of_rows ? maps.height[l] : maps.width[l], room, true);
    T* map = maps.data[l] + image * maps.image_stride[l] + c0 * maps.channel_stride[l];
    const S* source = grad + k * grad_roi + c0 * grad_channel;
    const unsigned across = *columns.cells, cells = *rows.cells * across;
    for (unsigned e = threadIdx.x; e < n * cells; e += blockDim.x) {
      int c, cell;
      locate(e, n, cells, channels_fastest, c, cell);
      const int y = cell / across, x = cell % across;
      const S* plane = source + c * grad_channel;
      T sum = 0;
      for (int i = rows.cell_begin[y]; i < rows.cell_begin[y + 1]; ++i) {
        const S* row = plane + rows.by_cell[i].at * grad_y;
        T part = 0;
        for (int j = columns.cell_begin[x]; j < columns.cell_begin[x + 1]; ++j)
          part += columns.by_cell[j].weight * static_cast<T>(row[columns.by_cell[j].at * grad_x]);
        sum += rows.by_cell[i].weight * part;
      }
      T* to = map + c * maps.channel_stride[l] + rows.cell[y] * maps.row_stride[l] + columns.cell[x] * maps.cell_stride[l];
      if (kInOrder) *to += sum;
      else atomicAdd(to, sum);
    }
  }
}

template <typename T>
Rule<T> device_rule(const RoIRule& rule) {
  return {static_cast<T>(rule.shift), static_cast<T>(rule.extra), static_cast<T>(rule.floor),
          static_cast<T>(rule.finest_scale), rule.sampling_ratio};
}

template <typename S, typename Tensors>
Maps<S> device_maps(const Tensors& tensors, c10::ArrayRef<double> scales) {
  Maps<S> maps;
  maps.levels = static_cast<int>(tensors.size());
  for (int l = 0; l < maps.levels; ++l) {
    const at::Tensor& t = tensors[l];
    maps.data[l] = const_cast<S*>(static_cast<const S*>(t.const_data_ptr()));
    maps.height[l] = static_cast<int>(t.size(2));
    maps.width[l] = static_cast<int>(t.size(3));
    maps.image_stride[l] = t.stride(0);
    maps.channel_stride[l] = t.stride(1);
    maps.row_stride[l] = t.stride(2);
    maps.cell_stride[l] = t.stride(3);
    maps.scale[l] = scales[l];
  }
  return maps;
}

struct Launch {
  int group, groups, room_y, room_x;
  size_t shared;

  template <typename T>
  static Launch plan(int64_t channels, int h, int w, int group, int largest_y, int largest_x, int sampling_ratio,
                     bool backward) {
    const int64_t cells = int64_t(largest_y) * largest_x, most = std::numeric_limits<int>::max();
    TORCH_CHECK_VALUE(cells <= most, "roi_align: a map of ", largest_y, " x ", largest_x, " cells is too large");
    Launch launch;  // elements of a block are counted in 32 bits
    group = static_cast<int>(std::clamp<int64_t>(channels, 1, group));
    launch.group = static_cast<int>(std::min<int64_t>(group, most / std::max<int64_t>(cells, 1)));
    launch.groups = static_cast<int>((channels + launch.group - 1) / launch.group);
    const int64_t room_y = room_for(h, largest_y, sampling_ratio), room_x = room_for(w, largest_x, sampling_ratio);
    launch.shared = Axis<T>::bytes(h, room_y, backward) + Axis<T>::bytes(w, room_x, backward);
    launch.room_y = static_cast<int>(room_y);
    launch.room_x = static_cast<int>(room_x);
    return launch;
  }

  template <typename Kernel>
  void allow(Kernel kernel) const {  // more than 48 KiB of shared memory is granted on request only
    if (shared <= 48 * 1024) return;
    int device, most;  // 64 to 227 KiB
    C10_CUDA_CHECK(cudaGetDevice(&device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    TORCH_CHECK_VALUE(shared <= static_cast<size_t>(most), "roi_align: bins and a map this large take ", shared,
                      " bytes of shared memory, this GPU has ", most, "; use a sampling_ratio above 0");
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
};

void check(at::TensorList maps, const at::Tensor& rois, c10::ArrayRef<double> scales, int64_t h, int64_t w,
           int64_t sampling_ratio) {
  check_maps(maps, rois, scales, h, w);
  TORCH_CHECK_VALUE(maps.size() <= kMaxLevels, "roi_align: at most ", kMaxLevels, " maps on CUDA, got ", maps.size());
  TORCH_CHECK_VALUE(sampling_ratio < (1 << 20), "roi_align: sampling_ratio ", sampling_ratio, " is out of range");
}

template <typename Tensors>
std::pair<int, int> largest(const Tensors& maps) {
  int y = 0, x = 0;
  for (const auto& m : maps) {
    y = std::max(y, static_cast<int>(m.size(2)));
    x = std::max(x, static_cast<int>(m.size(3)));
  }
  return {y, x};
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, c10::ArrayRef<double> scales, int64_t h, int64_t w,
                     int64_t sampling_ratio, bool aligned, bool legacy, double finest_scale) {
  check(features, rois, scales, h, w, sampling_ratio);
  const c10::cuda::CUDAGuard guard(features[0].device());
  const RoIRule rule(sampling_ratio, aligned, legacy, finest_scale);
  const int64_t channels = features[0].size(1);
  const bool last = features[0].is_contiguous(at::MemoryFormat::ChannelsLast) && !features[0].is_contiguous();
  at::Tensor output = at::empty({rois.size(0), channels, h, w}, features[0].options(),
                                last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (output.numel() == 0) return output;
  const auto type = features[0].scalar_type();
  const at::Tensor boxes = rois.to(type == at::kDouble ? at::kDouble : at::kFloat).contiguous();
  const auto size = largest(features);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_align", [&] {
    using S = scalar_t;
    using T = typename Compute<S>::type;
    const auto launch = Launch::plan<T>(channels, h, w, last ? 128 : 32, size.first, size.second, sampling_ratio,
                                        /*backward=*/false);
    TORCH_CHECK_VALUE(rois.size(0) * launch.groups < std::numeric_limits<int>::max(), "roi_align: too many boxes: ",
                      rois.size(0));
    launch.allow(forward_kernel<S, T>);
    forward_kernel<S, T><<<static_cast<unsigned>(rois.size(0) * launch.groups), kThreads, launch.shared,
                           c10::cuda::getCurrentCUDAStream()>>>(
        device_maps<const S>(features, scales), boxes.const_data_ptr<T>(), device_rule<T>(rule),
        static_cast<int>(features[0].size(0)), static_cast<int>(channels), static_cast<int>(h), static_cast<int>(w),
        launch.group, launch.groups, launch.room_y, launch.room_x, output.data_ptr<S>(), last ? 1 : h * w,
        last ? channels : 1);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return output;
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& rois, at::IntArrayRef shapes,
                                           c10::ArrayRef<double> scales, int64_t sampling_ratio, bool aligned,
                                           bool legacy, double finest_scale, bool channels_last) {
  check_gradient(grad, rois, shapes, scales);
  const c10::cuda::CUDAGuard guard(grad.device());
  const RoIRule rule(sampling_ratio, aligned, legacy, finest_scale);
  const auto type = grad.scalar_type(), inner = type == at::kDouble ? at::kDouble : at::kFloat;
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  std::vector<at::Tensor> result;
  for (size_t l = 0; l < scales.size(); ++l)
    result.push_back(at::empty(shapes.slice(4 * l, 4), grad.options().dtype(inner), format).zero_());
  const int64_t images = shapes[0], channels = shapes[1], h = grad.size(2), w = grad.size(3);
  check(result, rois, scales, h, w, sampling_ratio);
  if (grad.numel() > 0 && images > 0) {
    const at::Tensor boxes = rois.to(inner).contiguous();
    const auto size = largest(result);
    const bool deterministic = at::globalContext().deterministicAlgorithms();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_align_backward", [&] {
      using S = scalar_t;
      using T = typename Compute<S>::type;
      const int group = deterministic ? 4 : channels_last ? 128 : 32;
      const auto launch = Launch::plan<T>(channels, h, w, group, size.first, size.second, sampling_ratio,
                                          /*backward=*/true);
      const int64_t blocks = (deterministic ? images : rois.size(0)) * launch.groups;
      TORCH_CHECK_VALUE(blocks < std::numeric_limits<int>::max(), "roi_align_backward: too many boxes: ", rois.size(0));
      const auto kernel = deterministic ? backward_kernel<S, T, true> : backward_kernel<S, T, false>;
      launch.allow(kernel);
      kernel<<<static_cast<unsigned>(blocks), kThreads, launch.shared, c10::cuda::getCurrentCUDAStream()>>>(
          device_maps<T>(result, scales), boxes.const_data_ptr<T>(), rois.size(0), device_rule<T>(rule),
          static_cast<int>(images), static_cast<int>(channels), static_cast<int>(h), static_cast<int>(w),
          launch.group, launch.groups, launch.room_y, launch.room_x, grad.const_data_ptr<S>(), grad.stride(0),
          grad.stride(1), grad.stride(2), grad.stride(3), channels_last);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  for (auto& map : result) map = map.to(type);
  return result;
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CUDA, m) {
  m.impl("roi_align", mmdet::roi_align);
  m.impl("roi_align_backward", mmdet::roi_align_backward);
}

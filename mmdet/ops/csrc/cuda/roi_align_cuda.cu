// RoIAlign on CUDA over a pyramid, maps of any strides: one block takes one RoI and a group of channels.
//
// As on the CPU the averaged bilinear samples of an axis are merged into one list of (cell, weight) per bin, here in
// shared memory, so a block computes weights once for all its channels, and the backward pass adds once per cell and
// bin. Threads run along channels where channels are contiguous, along bins otherwise. The deterministic backward
// gives one block all RoIs of a picture for a group of channels, in order, and one thread a row of cells.

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

template <typename S>
struct Maps {
  S* data[kMaxLevels];
  int height[kMaxLevels], width[kMaxLevels];
  int64_t picture_stride[kMaxLevels], channel_stride[kMaxLevels], row_stride[kMaxLevels], cell_stride[kMaxLevels];
  double scale[kMaxLevels];
  int levels;
};

template <typename T>
struct Rule {
  T shift, extra, floor, finest_scale;
  int sampling_ratio;
};

template <typename T>
struct RoI {
  int picture, level;  // level -1: nothing to sample
  T start[2], bin[2];  // rows, columns
  int64_t samples[2];
};

template <typename T, typename S>
__device__ RoI<T> read_roi(const T* row, const Maps<S>& maps, const Rule<T>& rule, int pictures, const int bins[2]) {
  RoI<T> roi;
  roi.level = -1;
  const T low[2] = {row[2], row[1]}, high[2] = {row[4] + rule.extra, row[3] + rule.extra};
  int level = 0;
  if (maps.levels > 1) {
    const T side = sqrt((high[1] - low[1]) * (high[0] - low[0])) / rule.finest_scale + T(1e-6);
    T bound = 2;
    while (level < maps.levels - 1 && side >= bound) {
      ++level;
      bound *= 2;
    }
  }
  const T scale = static_cast<T>(maps.scale[level]);
  for (int a = 0; a < 2; ++a) {
    roi.start[a] = low[a] * scale - rule.shift;
    T side = high[a] * scale - rule.shift - roi.start[a];
    if (!(isfinite(roi.start[a]) && isfinite(side))) return roi;
    side = side < rule.floor ? rule.floor : side;
    roi.bin[a] = side / static_cast<T>(bins[a]);
    const T adaptive = ceil(side / static_cast<T>(bins[a]));
    roi.samples[a] = rule.sampling_ratio > 0 ? rule.sampling_ratio
                     : adaptive > T(0)       ? static_cast<int64_t>(adaptive < T(1 << 30) ? adaptive : T(1 << 30))
                                             : 0;
  }
  if (!(row[0] >= T(0) && row[0] < static_cast<T>(pictures))) return roi;  // no message without a host sync: zeros
  roi.picture = static_cast<int>(row[0]);
  roi.level = level;
  return roi;
}

// Calls found(cell, weight) for the merged samples of one bin, cells ascending.
template <typename T, typename Found>
__device__ void merged_samples(T start, T bin, int64_t samples, int size, int p, Found found) {
  if (size == 0 || samples <= 0) return;
  const T base = start + static_cast<T>(p) * bin, share = T(1) / static_cast<T>(samples);
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

// Both axes' lists of one RoI in shared memory
template <typename T>
struct Lists {
  int* begin[2];  // bins + 1
  int* cell[2];
  T* weight[2];
  int capacity[2];

  __device__ Lists(unsigned char* shared, const int bins[2], const int room[2]) {
    T* values = reinterpret_cast<T*>(shared);
    weight[0] = values;
    weight[1] = values + room[0];
    int* numbers = reinterpret_cast<int*>(values + room[0] + room[1]);
    cell[0] = numbers;
    cell[1] = numbers + room[0];
    begin[0] = numbers + room[0] + room[1];
    begin[1] = begin[0] + bins[0] + 1;
    capacity[0] = room[0];
    capacity[1] = room[1];
  }

  // by all threads of the block; they meet at the end
  __device__ void build(const RoI<T>& roi, const int bins[2], const int sizes[2]) {
    const int total = bins[0] + bins[1];
    for (int i = threadIdx.x; i < total; i += blockDim.x) {
      const int a = i < bins[0] ? 0 : 1, p = a ? i - bins[0] : i;
      int count = 0;
      merged_samples(roi.start[a], roi.bin[a], roi.samples[a], sizes[a], p, [&](int, T) { ++count; });
      begin[a][p + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
      const int a = threadIdx.x;
      begin[a][0] = 0;
      for (int p = 0; p < bins[a]; ++p) begin[a][p + 1] = min(begin[a][p] + begin[a][p + 1], capacity[a]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < total; i += blockDim.x) {
      const int a = i < bins[0] ? 0 : 1, p = a ? i - bins[0] : i;
      int k = begin[a][p];
      const int end = begin[a][p + 1];
      merged_samples(roi.start[a], roi.bin[a], roi.samples[a], sizes[a], p, [&](int c, T w) {
        if (k < end) {
          cell[a][k] = c;
          weight[a][k] = w;
          ++k;
        }
      });
    }
    __syncthreads();
  }
};

// Room for an axis: bins share at most two cells with their neighbours, so all lists together hold at most the map's
// cells and three more a bin.
int room_for(int bins, int largest, int sampling_ratio) {
  const int64_t by_cells = int64_t(largest) + 3 * int64_t(bins);
  const int64_t by_samples = sampling_ratio > 0 ? 2 * int64_t(sampling_ratio) * bins : by_cells;
  return static_cast<int>(std::min(by_cells, by_samples));
}

// Element e of a RoI's (group, bins) block: channels fastest where they are contiguous, bins fastest otherwise
__device__ inline void locate(int64_t e, int group, int64_t bins, bool channels_fastest, int& c, int& bin) {
  if (channels_fastest) {
    c = static_cast<int>(e % group);
    bin = static_cast<int>(e / group);
  } else {
    c = static_cast<int>(e / bins);
    bin = static_cast<int>(e % bins);
  }
}

template <typename S, typename T>
__global__ void forward_kernel(Maps<const S> maps, const T* boxes, Rule<T> rule, int pictures, int channels, int h, int w,
                               int group, int groups, int room_y, int room_x, S* out, int64_t out_channel,
                               int64_t out_bin) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int bins[2] = {h, w}, room[2] = {room_y, room_x};
  Lists<T> lists(shared, bins, room);
  const int64_t k = blockIdx.x / groups;
  const int c0 = static_cast<int>(blockIdx.x % groups) * group, n = min(group, channels - c0);
  const int64_t num_bins = int64_t(h) * w;
  const RoI<T> roi = read_roi<T, const S>(boxes + 5 * k, maps, rule, pictures, bins);
  S* target = out + k * channels * num_bins + c0 * out_channel;
  const bool channels_fastest = out_channel == 1;
  if (roi.level < 0) {
    for (int64_t e = threadIdx.x; e < n * num_bins; e += blockDim.x) {
      int c, bin;
      locate(e, n, num_bins, channels_fastest, c, bin);
      target[c * out_channel + bin * out_bin] = static_cast<S>(0);
    }
    return;
  }
  const int l = roi.level, sizes[2] = {maps.height[l], maps.width[l]};
  lists.build(roi, bins, sizes);
  const S* map = maps.data[l] + roi.picture * maps.picture_stride[l] + c0 * maps.channel_stride[l];
  for (int64_t e = threadIdx.x; e < n * num_bins; e += blockDim.x) {
    int c, bin;
    locate(e, n, num_bins, channels_fastest, c, bin);
    const int py = bin / w, px = bin % w;
    const S* plane = map + c * maps.channel_stride[l];
    T sum = 0;
    for (int i = lists.begin[0][py]; i < lists.begin[0][py + 1]; ++i) {
      const S* row = plane + lists.cell[0][i] * maps.row_stride[l];
      T across = 0;
      for (int j = lists.begin[1][px]; j < lists.begin[1][px + 1]; ++j)
        across += lists.weight[1][j] * static_cast<T>(row[lists.cell[1][j] * maps.cell_stride[l]]);
      sum += lists.weight[0][i] * across;
    }
    target[c * out_channel + bin * out_bin] = static_cast<S>(sum);
  }
}

template <typename S, typename T>
__global__ void backward_kernel(Maps<T> maps, const T* boxes, Rule<T> rule, int pictures, int channels, int h, int w,
                                int group, int groups, int room_y, int room_x, const S* grad, int64_t grad_roi,
                                int64_t grad_channel, int64_t grad_y, int64_t grad_x, bool channels_fastest) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int bins[2] = {h, w}, room[2] = {room_y, room_x};
  Lists<T> lists(shared, bins, room);
  const int64_t k = blockIdx.x / groups;
  const int c0 = static_cast<int>(blockIdx.x % groups) * group, n = min(group, channels - c0);
  const int64_t num_bins = int64_t(h) * w;
  const RoI<T> roi = read_roi<T, T>(boxes + 5 * k, maps, rule, pictures, bins);
  if (roi.level < 0) return;
  const int l = roi.level, sizes[2] = {maps.height[l], maps.width[l]};
  lists.build(roi, bins, sizes);
  T* map = maps.data[l] + roi.picture * maps.picture_stride[l] + c0 * maps.channel_stride[l];
  const S* source = grad + k * grad_roi + c0 * grad_channel;
  for (int64_t e = threadIdx.x; e < n * num_bins; e += blockDim.x) {
    int c, bin;
    locate(e, n, num_bins, channels_fastest, c, bin);
    const int py = bin / w, px = bin % w;
    const T g = static_cast<T>(source[c * grad_channel + py * grad_y + px * grad_x]);
    T* plane = map + c * maps.channel_stride[l];
    for (int i = lists.begin[0][py]; i < lists.begin[0][py + 1]; ++i) {
      T* row = plane + lists.cell[0][i] * maps.row_stride[l];
      const T down = lists.weight[0][i] * g;
      for (int j = lists.begin[1][px]; j < lists.begin[1][px + 1]; ++j)
        atomicAdd(row + lists.cell[1][j] * maps.cell_stride[l], lists.weight[1][j] * down);
    }
  }
}

// One block: one picture, `group` channels, all RoIs in order. Within a RoI a thread owns (channel, row of cells).
template <typename S, typename T>
__global__ void deterministic_backward_kernel(Maps<T> maps, const T* boxes, int64_t num_rois, Rule<T> rule, int pictures,
                                              int channels, int h, int w, int group, int groups, int room_y, int room_x,
                                              const S* grad, int64_t grad_roi, int64_t grad_channel, int64_t grad_y,
                                              int64_t grad_x) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int bins[2] = {h, w}, room[2] = {room_y, room_x};
  Lists<T> lists(shared, bins, room);
  const int picture = blockIdx.x / groups;
  const int c0 = static_cast<int>(blockIdx.x % groups) * group, n = min(group, channels - c0);
  for (int64_t k = 0; k < num_rois; ++k) {
    const RoI<T> roi = read_roi<T, T>(boxes + 5 * k, maps, rule, pictures, bins);
    if (roi.level < 0 || roi.picture != picture) continue;  // the same for all threads of the block
    const int l = roi.level, sizes[2] = {maps.height[l], maps.width[l]};
    lists.build(roi, bins, sizes);
    int first = maps.height[l], last = -1;  // rows of cells touched
    for (int i = 0; i < lists.begin[0][h]; ++i) {
      first = min(first, lists.cell[0][i]);
      last = max(last, lists.cell[0][i]);
    }
    T* map = maps.data[l] + int64_t(picture) * maps.picture_stride[l] + c0 * maps.channel_stride[l];
    const S* source = grad + k * grad_roi + c0 * grad_channel;
    const int rows = last - first + 1;
    for (int64_t e = threadIdx.x; e < int64_t(n) * max(rows, 0); e += blockDim.x) {
      const int c = static_cast<int>(e / rows), r = first + static_cast<int>(e % rows);
      T* row = map + c * maps.channel_stride[l] + r * maps.row_stride[l];
      for (int py = 0; py < h; ++py) {
        T weight = 0;
        for (int i = lists.begin[0][py]; i < lists.begin[0][py + 1]; ++i)
          if (lists.cell[0][i] == r) weight += lists.weight[0][i];
        if (weight == T(0)) continue;
        for (int px = 0; px < w; ++px) {
          const T g = weight * static_cast<T>(source[c * grad_channel + py * grad_y + px * grad_x]);
          for (int j = lists.begin[1][px]; j < lists.begin[1][px + 1]; ++j)
            row[lists.cell[1][j] * maps.cell_stride[l]] += lists.weight[1][j] * g;
        }
      }
    }
    __syncthreads();  // before the next RoI rebuilds the lists and touches the same cells
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
    maps.picture_stride[l] = t.stride(0);
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
  static Launch plan(int64_t channels, int h, int w, int group, int largest_y, int largest_x, int sampling_ratio) {
    Launch launch;
    launch.group = static_cast<int>(std::min<int64_t>(group, std::max<int64_t>(channels, 1)));
    launch.groups = static_cast<int>((channels + launch.group - 1) / launch.group);
    launch.room_y = room_for(h, largest_y, sampling_ratio);
    launch.room_x = room_for(w, largest_x, sampling_ratio);
    launch.shared = (launch.room_y + launch.room_x) * (sizeof(T) + sizeof(int)) + (h + w + 2) * sizeof(int);
    return launch;
  }

  template <typename Kernel>
  void allow(Kernel kernel) const {  // more than 48 KiB of shared memory is granted on request only
    if (shared > 48 * 1024)
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
    const auto launch = Launch::plan<T>(channels, h, w, last ? 128 : 32, size.first, size.second, sampling_ratio);
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
  const int64_t pictures = shapes[0], channels = shapes[1], h = grad.size(2), w = grad.size(3);
  check(result, rois, scales, h, w, sampling_ratio);
  if (grad.numel() > 0 && pictures > 0) {
    const at::Tensor boxes = rois.to(inner).contiguous();
    const auto size = largest(result);
    const bool deterministic = at::globalContext().deterministicAlgorithms();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_align_backward", [&] {
      using S = scalar_t;
      using T = typename Compute<S>::type;
      const int group = deterministic ? 8 : channels_last ? 128 : 32;
      const auto launch = Launch::plan<T>(channels, h, w, group, size.first, size.second, sampling_ratio);
      const auto maps = device_maps<T>(result, scales);
      const auto stream = c10::cuda::getCurrentCUDAStream();
      if (deterministic) {
        launch.allow(deterministic_backward_kernel<S, T>);
        deterministic_backward_kernel<S, T>
            <<<static_cast<unsigned>(pictures * launch.groups), kThreads, launch.shared, stream>>>(
                maps, boxes.const_data_ptr<T>(), rois.size(0), device_rule<T>(rule), static_cast<int>(pictures),
                static_cast<int>(channels), static_cast<int>(h), static_cast<int>(w), launch.group, launch.groups,
                launch.room_y, launch.room_x, grad.const_data_ptr<S>(), grad.stride(0), grad.stride(1), grad.stride(2),
                grad.stride(3));
      } else {
        TORCH_CHECK_VALUE(rois.size(0) * launch.groups < std::numeric_limits<int>::max(),
                          "roi_align_backward: too many boxes: ", rois.size(0));
        launch.allow(backward_kernel<S, T>);
        backward_kernel<S, T><<<static_cast<unsigned>(rois.size(0) * launch.groups), kThreads, launch.shared, stream>>>(
            maps, boxes.const_data_ptr<T>(), device_rule<T>(rule), static_cast<int>(pictures),
            static_cast<int>(channels), static_cast<int>(h), static_cast<int>(w), launch.group, launch.groups,
            launch.room_y, launch.room_x, grad.const_data_ptr<S>(), grad.stride(0), grad.stride(1), grad.stride(2),
            grad.stride(3), channels_last);
      }
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

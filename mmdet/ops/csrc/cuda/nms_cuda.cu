// NMS, per-class NMS and Soft-NMS on CUDA, without a look at the host until the number kept must be known.
//
// Boxes are ranked by (class, score descending, row), so a class is a segment. Suppression bits of 64 x 64 tiles are
// computed where a tile holds two boxes of one class; then each segment is resolved by one block, all at once.

#include <ATen/Dispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "../common.h"

namespace mmdet {
namespace {

using Word = unsigned long long;
constexpr int kBits = 64;
constexpr int kWarp = 32;
constexpr int kResolveThreads = 512;
constexpr int kSoftThreads = 256;

template <typename T>
__device__ inline T larger(T a, T b) { return a < b ? b : a; }
template <typename T>
__device__ inline T smaller(T a, T b) { return b < a ? b : a; }

// `a` is the box of higher score; NaN as with std::max and std::min of a first
template <typename T>
__device__ inline T overlap(const T* a, const T* b, T offset) {
  const T dx = smaller(a[2], b[2]) - larger(a[0], b[0]) + offset, dy = smaller(a[3], b[3]) - larger(a[1], b[1]) + offset;
  const T inter = larger(T(0), dx) * larger(T(0), dy);
  const T area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset);
  const T area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset);
  return inter / (area_a + area_b - inter);
}

// bits[i * words + v]: which boxes 64 v .. 64 v + 63 box i suppresses. Only tiles on or right of the diagonal that share
// a class are written, and only those are read.
template <typename T>
__global__ void suppression_bits(const T* boxes, const int64_t* classes, int64_t n, T limit, T offset, int64_t words,
                                 Word* bits) {
  const int64_t row_tile = blockIdx.y, column_tile = blockIdx.x;
  if (column_tile < row_tile) return;
  const int64_t first_row = row_tile * kBits, first_column = column_tile * kBits;
  const int rows = static_cast<int>(min(int64_t(kBits), n - first_row));
  const int columns = static_cast<int>(min(int64_t(kBits), n - first_column));
  if (classes != nullptr && classes[first_row + rows - 1] < classes[first_column]) return;
  __shared__ T column_boxes[kBits * 4];
  __shared__ int64_t column_classes[kBits];
  const int t = threadIdx.x;
  if (t < columns) {
    for (int a = 0; a < 4; ++a) column_boxes[4 * t + a] = boxes[4 * (first_column + t) + a];
    column_classes[t] = classes == nullptr ? 0 : classes[first_column + t];
  }
  __syncthreads();
  if (t >= rows) return;
  const int64_t i = first_row + t;
  const T box[4] = {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
  const int64_t own = classes == nullptr ? 0 : classes[i];
  Word word = 0;
  for (int j = column_tile == row_tile ? t + 1 : 0; j < columns; ++j)
    if (column_classes[j] == own && overlap(box, column_boxes + 4 * j, offset) > limit) word |= Word(1) << j;
  bits[i * words + column_tile] = word;
}

// One past the last box of the class that begins at `start`
__device__ inline int64_t segment_end(const int64_t* classes, int64_t n, int64_t start) {
  if (classes == nullptr) return n;
  int64_t low = start, high = n;  // classes[low] is the class, classes[high] (if any) is not
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (classes[middle] == classes[start] ? low : high) = middle;
  }
  return high;
}

__device__ inline bool begins_segment(const int64_t* classes, int64_t i) {
  return i == 0 || (classes != nullptr && classes[i] != classes[i - 1]);
}

// Block b resolves the segments that begin among boxes 64 b .. 64 b + 63, 64 boxes at a time: one thread decides which
// of them are kept, then each warp takes some of those and strikes out, a lane a word, what they suppress. That is
// read behind the next 64 boxes' first barrier, so two are enough. keep is indexed by rank in score.
__global__ void __launch_bounds__(kResolveThreads) resolve(const Word* bits, const int64_t* classes, const int64_t* rank,
                                                           int64_t n, int64_t words, bool* keep) {
  extern __shared__ Word removed[];  // words of the segment, counted from its first
  __shared__ Word tile[kBits];
  __shared__ Word kept;
  const int t = threadIdx.x;
  const int64_t stop = min(n, (int64_t(blockIdx.x) + 1) * kBits);
  for (int64_t start = int64_t(blockIdx.x) * kBits; start < stop; ++start) {
    if (!begins_segment(classes, start)) continue;  // the same for all threads of the block
    const int64_t end = segment_end(classes, n, start);
    const int64_t first_word = start / kBits, last_word = (end - 1) / kBits;
    for (int64_t v = first_word + t; v <= last_word; v += blockDim.x) removed[v - first_word] = 0;
    for (int64_t u = first_word; u <= last_word; ++u) {
      const int low = static_cast<int>(max(start, u * kBits) - u * kBits);
      const int high = static_cast<int>(min(end, (u + 1) * kBits) - u * kBits);
      if (t < kBits) tile[t] = t >= low && t < high ? bits[(u * kBits + t) * words + u] : 0;
      __syncthreads();
      if (t == 0) {
        Word gone = removed[u - first_word];
#pragma unroll
        for (int b = 0; b < kBits; ++b) gone |= gone >> b & 1 ? 0 : tile[b];
        kept = ~gone & ~Word(0) >> (kBits - high) & ~Word(0) << low;  // a box suppresses only those after it
      }
      __syncthreads();
      const Word chosen = kept;
      if (t < kBits && chosen >> t & 1) keep[rank == nullptr ? u * kBits + t : rank[u * kBits + t]] = true;
      for (int64_t v = u + 1 + t % kWarp; v <= last_word; v += kWarp) {
        Word gone = 0;
#pragma unroll
        for (int b = t / kWarp; b < kBits; b += kResolveThreads / kWarp)
          if (chosen >> b & 1) gone |= bits[(u * kBits + b) * words + v];
        if (gone != 0) atomicOr(removed + (v - first_word), gone);
      }
    }
  }
}

struct Ranking {
  at::Tensor by_score;  // rows by (score descending, row)
  at::Tensor order;     // rows by (class, score descending, row)
  at::Tensor rank;      // place in by_score of each of `order`; undefined without classes
  at::Tensor classes;   // class of each of `order`; undefined without classes

  Ranking(const at::Tensor& scores, const std::optional<at::Tensor>& idxs) {
    by_score = std::get<1>(at::sort(scores, /*stable=*/true, /*dim=*/0, /*descending=*/true));
    order = by_score;
    if (idxs.has_value()) {
      std::tie(classes, rank) = at::sort(idxs->to(at::kLong).index_select(0, by_score), /*stable=*/true, /*dim=*/0,
                                         /*descending=*/false);
      classes = classes.contiguous();
      rank = rank.contiguous();
      order = by_score.index_select(0, rank);
    }
  }
  const int64_t* class_data() const { return classes.defined() ? classes.const_data_ptr<int64_t>() : nullptr; }
  const int64_t* rank_data() const { return rank.defined() ? rank.const_data_ptr<int64_t>() : nullptr; }
};

void check(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& idxs, const char* op) {
  check_boxes(boxes, 4, op);
  TORCH_CHECK_VALUE(scores.dim() == 1 && scores.size(0) == boxes.size(0), op, ": scores must be (", boxes.size(0),
                    ",), got ", scores.sizes());
  TORCH_CHECK_VALUE(!idxs.has_value() || (idxs->dim() == 1 && idxs->size(0) == boxes.size(0)), op, ": idxs must be (",
                    boxes.size(0), ",)");
  TORCH_CHECK_VALUE(scores.device() == boxes.device() && (!idxs.has_value() || idxs->device() == boxes.device()), op,
                    ": boxes, scores and idxs must be on one device");
  TORCH_CHECK_VALUE(boxes.is_floating_point() && scores.is_floating_point(), op,
                    ": boxes and scores must be floating point");
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& idxs,
               double iou_threshold, double offset) {
  check(boxes, scores, idxs, "nms");
  const c10::cuda::CUDAGuard guard(boxes.device());
  const int64_t n = boxes.size(0), words = (n + kBits - 1) / kBits;
  if (n == 0) return at::empty({0}, boxes.options().dtype(at::kLong));
  TORCH_CHECK_VALUE(words * sizeof(Word) <= 47 * 1024, "nms: at most ", 47 * 1024 / sizeof(Word) * kBits,
                    " boxes on CUDA, got ", n, "; keep the best by score first");
  const auto type = boxes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Ranking r(scores, idxs);
  const at::Tensor sorted = boxes.to(type).index_select(0, r.order).contiguous();
  const at::Tensor bits = at::empty({n, words}, boxes.options().dtype(at::kLong));
  at::Tensor keep = at::zeros({n}, boxes.options().dtype(at::kBool));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  Word* word_data = reinterpret_cast<Word*>(bits.data_ptr<int64_t>());
  AT_DISPATCH_FLOATING_TYPES(type, "nms", [&] {
    scalar_t limit = static_cast<scalar_t>(iou_threshold);  // the largest not above the threshold
    if (static_cast<double>(limit) > iou_threshold)
      limit = std::nextafter(limit, -std::numeric_limits<scalar_t>::infinity());
    const dim3 tiles(static_cast<unsigned>(words), static_cast<unsigned>(words));
    suppression_bits<scalar_t><<<tiles, kBits, 0, stream>>>(sorted.const_data_ptr<scalar_t>(), r.class_data(), n, limit,
                                                            static_cast<scalar_t>(offset), words, word_data);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  resolve<<<static_cast<unsigned>(r.classes.defined() ? words : 1), kResolveThreads, words * sizeof(Word), stream>>>(
      word_data, r.class_data(), r.rank_data(), n, words, keep.data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return r.by_score.masked_select(keep);
}

// The better of two boxes by score, then by place; place -1: none
template <typename T>
__device__ inline void take_better(T& score, int64_t& place, T other_score, int64_t other) {
  if (other < 0 || (place >= 0 && (other_score < score || (other_score == score && other > place)))) return;
  score = other_score;
  place = other;
}

// Block b softens the segments that begin among boxes 64 b .. 64 b + 63. chosen[i]: the box is kept, with score[i].
template <typename T>
__global__ void __launch_bounds__(kSoftThreads) soften(const T* boxes, const int64_t* classes, int64_t n, T limit,
                                                       double sigma, T least, int method, T offset, T* score,
                                                       bool* alive, bool* chosen) {
  constexpr int kWarps = kSoftThreads / kWarp;
  __shared__ T best_score[2][kWarps];  // of each warp, in even and odd rounds: so one barrier a round is enough
  __shared__ int64_t best_place[2][kWarps];
  const int t = threadIdx.x;
  int parity = 0;
  const int64_t stop = classes == nullptr ? 1 : min(n, (int64_t(blockIdx.x) + 1) * kBits);
  for (int64_t start = int64_t(blockIdx.x) * kBits; start < stop; ++start) {
    if (!begins_segment(classes, start)) continue;
    const int64_t end = segment_end(classes, n, start);
    for (int64_t i = start + t; i < end; i += blockDim.x) alive[i] = score[i] >= least;
    while (true) {
      T top = 0;
      int64_t best = -1;
      for (int64_t i = start + t; i < end; i += blockDim.x)  // a box is always the same thread's
        if (alive[i]) take_better(top, best, score[i], i);
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const T other_top = __shfl_xor_sync(~0u, top, step);
        take_better(top, best, other_top, __shfl_xor_sync(~0u, best, step));
      }
      if (t % kWarp == 0) {
        best_score[parity][t / kWarp] = top;
        best_place[parity][t / kWarp] = best;
      }
      __syncthreads();
      for (int warp = 0; warp < kWarps; ++warp)
        take_better(top, best, best_score[parity][warp], best_place[parity][warp]);
      parity ^= 1;
      if (best < 0) break;  // the same for all threads of the block
      for (int64_t i = start + t; i < end; i += blockDim.x) {
        if (!alive[i]) continue;
        if (i == best) {
          alive[i] = false;
          chosen[i] = true;
          continue;
        }
        const T iou = overlap(boxes + 4 * best, boxes + 4 * i, offset);
        T s = score[i];
        if (method == 2) {
          if (iou > T(0)) s *= static_cast<T>(exp(-double(iou) * iou / sigma));
        } else if (iou > limit) {
          s *= method == 1 ? T(1) - iou : T(0);
        }
        score[i] = s;
        if (!(s >= least) || (method == 0 && s == T(0))) alive[i] = false;
      }
    }
  }
}

std::tuple<at::Tensor, at::Tensor> soft_nms(const at::Tensor& boxes, const at::Tensor& scores,
                                            const std::optional<at::Tensor>& idxs, double iou_threshold, double sigma,
                                            double min_score, int64_t method, double offset) {
  check(boxes, scores, idxs, "soft_nms");
  TORCH_CHECK_VALUE(method >= 0 && method <= 2, "soft_nms: method must be 0, 1 or 2, got ", method);
  const c10::cuda::CUDAGuard guard(boxes.device());
  const int64_t n = boxes.size(0);
  if (n == 0) return {at::empty({0}, boxes.options().dtype(at::kLong)), at::empty({0}, scores.options())};
  const auto type = boxes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Ranking r(scores, idxs);
  const at::Tensor sorted = boxes.to(type).index_select(0, r.order).contiguous();
  at::Tensor score = scores.to(type).index_select(0, r.order).contiguous();
  at::Tensor alive = at::empty({n}, boxes.options().dtype(at::kBool));
  at::Tensor chosen = at::zeros({n}, boxes.options().dtype(at::kBool));
  const int64_t tiles = r.classes.defined() ? (n + kBits - 1) / kBits : 1;
  AT_DISPATCH_FLOATING_TYPES(type, "soft_nms", [&] {
    soften<scalar_t><<<static_cast<unsigned>(tiles), kSoftThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        sorted.const_data_ptr<scalar_t>(), r.class_data(), n, static_cast<scalar_t>(iou_threshold), sigma,
        static_cast<scalar_t>(min_score), static_cast<int>(method), static_cast<scalar_t>(offset),
        score.data_ptr<scalar_t>(), alive.data_ptr<bool>(), chosen.data_ptr<bool>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  // back to rows, so that equal scores come in the order of rows
  at::Tensor by_row = at::empty_like(chosen), score_by_row = at::empty_like(score);
  by_row.index_copy_(0, r.order, chosen);
  score_by_row.index_copy_(0, r.order, score);
  const at::Tensor rows = at::arange(n, r.order.options()).masked_select(by_row);
  const auto ranked = at::sort(score_by_row.masked_select(by_row), /*stable=*/true, /*dim=*/0, /*descending=*/true);
  return {rows.index_select(0, std::get<1>(ranked)), std::get<0>(ranked).to(scores.scalar_type())};
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CUDA, m) {
  m.impl("nms", mmdet::nms);
  m.impl("soft_nms", mmdet::soft_nms);
}

// NMS, per-class NMS and Soft-NMS (arXiv 1704.04503) on the CPU.
//
// Boxes are ranked once by (class, score, row): ties in score go to the lower row. Each class is one segment.
// Greedy suppression asks of each candidate whether a kept box overlaps it: the kept boxes are one packed,
// vectorised list, and inside a large segment a block of candidates is tested by all threads at once.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../common.h"
#include "simd.h"

namespace mmdet {

template <typename T>
struct BoxView {
  const T *x1, *y1, *x2, *y2, *area;
};

namespace base {
#include "nms_kernels.inl"
}  // namespace base

#if MMDET_X86_DISPATCH
#pragma GCC push_options
#pragma GCC target("avx2")  // without fma: IoUs are rounded as torchvision's are
namespace avx2 {
#include "nms_kernels.inl"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace {

template <typename T>
struct Boxes {
  std::vector<T> x1, y1, x2, y2, area;

  void reserve(int64_t n) {
    for (auto* v : {&x1, &y1, &x2, &y2, &area}) v->reserve(n);
  }
  void clear() {
    for (auto* v : {&x1, &y1, &x2, &y2, &area}) v->clear();
  }
  void push(const T* box, T a) {
    x1.push_back(box[0]), y1.push_back(box[1]), x2.push_back(box[2]), y2.push_back(box[3]), area.push_back(a);
  }
  int64_t size() const { return static_cast<int64_t>(x1.size()); }
  BoxView<T> view(int64_t from = 0) const {
    return {x1.data() + from, y1.data() + from, x2.data() + from, y2.data() + from, area.data() + from};
  }
};

template <typename T>
T area_of(const T* box, T offset) {
  return (box[2] - box[0] + offset) * (box[3] - box[1] + offset);
}

// The largest T not above t: x > t is the same question for every x of type T.
template <typename T>
T round_down(double t) {
  T limit = static_cast<T>(t);
  if (static_cast<double>(limit) > t) limit = std::nextafter(limit, -std::numeric_limits<T>::infinity());
  return limit;
}

struct Ranking {
  std::vector<int64_t> row;      // rows by (class, score descending, row)
  std::vector<int64_t> rank;     // place of each of them in the order by (score descending, row)
  std::vector<int64_t> segment;  // where classes begin in `row`, and the end
};

Ranking rank_boxes(const at::Tensor& scores, const std::optional<at::Tensor>& idxs) {
  const int64_t n = scores.size(0);
  const at::Tensor order = std::get<1>(at::sort(scores, /*stable=*/true, /*dim=*/0, /*descending=*/true));
  const int64_t* by_score = order.const_data_ptr<int64_t>();
  Ranking r;
  r.rank.resize(n);
  std::iota(r.rank.begin(), r.rank.end(), 0);
  r.segment.push_back(0);
  if (idxs.has_value() && n > 0) {
    const at::Tensor classes = idxs->to(at::kLong).contiguous();
    const int64_t* c = classes.const_data_ptr<int64_t>();
    const auto range = std::minmax_element(c, c + n);
    const int64_t low = *range.first;
    const uint64_t span = static_cast<uint64_t>(*range.second) - static_cast<uint64_t>(low);
    if (span < static_cast<uint64_t>(4 * n + 1024)) {  // counting sort, stable in the order by score
      std::vector<int64_t> next(span + 2, 0);
      for (int64_t i = 0; i < n; ++i) ++next[c[i] - low + 1];
      for (size_t k = 1; k < next.size(); ++k) {
        if (next[k] > 0) r.segment.push_back(r.segment.back() + next[k]);
        next[k] += next[k - 1];
      }
      for (int64_t i = 0; i < n; ++i) r.rank[next[c[by_score[i]] - low]++] = i;
    } else {
      std::stable_sort(r.rank.begin(), r.rank.end(),
                       [&](int64_t a, int64_t b) { return c[by_score[a]] < c[by_score[b]]; });
      for (int64_t i = 1; i < n; ++i)
        if (c[by_score[r.rank[i]]] != c[by_score[r.rank[i - 1]]]) r.segment.push_back(i);
      r.segment.push_back(n);
    }
  } else {
    r.segment.push_back(n);
  }
  r.row.resize(n);
  for (int64_t i = 0; i < n; ++i) r.row[i] = by_score[r.rank[i]];
  return r;
}

// Marks the kept ones of rows[0..n), which are one class in descending order of score.
template <typename T>
void suppress(const T* boxes, const int64_t* rows, int64_t n, T limit, T offset, Boxes<T>& kept, char* keep) {
  constexpr int64_t kBlock = 512;
  kept.clear();
  char alive[kBlock];
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(kBlock, n - first);
    const int64_t before = kept.size();
    std::fill_n(alive, count, 1);
    if (before > 0)  // the kept boxes of former blocks, by all threads
      at::parallel_for(0, count, std::max<int64_t>(1, 65536 / before), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* box = boxes + 4 * rows[first + i];
          alive[i] = !MMDET_DISPATCH(any_overlap(kept.view(), before, box, area_of(box, offset), limit, offset));
        }
      });
    for (int64_t i = 0; i < count; ++i) {
      if (!alive[i]) continue;
      const T* box = boxes + 4 * rows[first + i];
      const T area = area_of(box, offset);
      if (MMDET_DISPATCH(any_overlap(kept.view(before), kept.size() - before, box, area, limit, offset))) continue;
      kept.push(box, area);
      keep[first + i] = 1;
    }
  }
}

template <typename Work>
void for_each_segment(const Ranking& r, const Work& work) {
  const int64_t segments = static_cast<int64_t>(r.segment.size()) - 1;
  const int64_t n = static_cast<int64_t>(r.row.size());
  if (segments < 2 * at::get_num_threads()) {  // few classes: the threads work inside each
    for (int64_t s = 0; s < segments; ++s) work(s, s + 1);
  } else {
    at::parallel_for(0, segments, std::max<int64_t>(1, segments * 1024 / std::max<int64_t>(n, 1)), work);
  }
}

void check(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& idxs, const char* op) {
  check_boxes(boxes, 4, op);
  TORCH_CHECK_VALUE(scores.dim() == 1 && scores.size(0) == boxes.size(0), op, ": scores must be (", boxes.size(0),
                    ",), got ", scores.sizes());
  TORCH_CHECK_VALUE(!idxs.has_value() || (idxs->dim() == 1 && idxs->size(0) == boxes.size(0)), op,
                    ": idxs must be (", boxes.size(0), ",)");
  TORCH_CHECK_VALUE(boxes.device().is_cpu() && scores.device().is_cpu() && (!idxs.has_value() || idxs->device().is_cpu()),
                    op, ": boxes, scores and idxs must be on one device");
  TORCH_CHECK_VALUE(boxes.is_floating_point() && scores.is_floating_point(), op,
                    ": boxes and scores must be floating point");
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, const std::optional<at::Tensor>& idxs,
               double iou_threshold, double offset) {
  check(boxes, scores, idxs, "nms");
  const auto type = boxes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor plain = boxes.to(type).contiguous();
  const Ranking r = rank_boxes(scores, idxs);
  const int64_t n = boxes.size(0);
  std::vector<char> keep(n, 0);
  AT_DISPATCH_FLOATING_TYPES(type, "nms", [&] {
    const scalar_t* data = plain.const_data_ptr<scalar_t>();
    for_each_segment(r, [&](int64_t begin, int64_t end) {
      Boxes<scalar_t> kept;
      for (int64_t s = begin; s < end; ++s)
        suppress(data, r.row.data() + r.segment[s], r.segment[s + 1] - r.segment[s],
                 round_down<scalar_t>(iou_threshold), static_cast<scalar_t>(offset), kept,
                 keep.data() + r.segment[s]);
    });
  });
  std::vector<int64_t> by_rank(n, -1);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (keep[i]) by_rank[r.rank[i]] = r.row[i], ++count;
  at::Tensor result = at::empty({count}, boxes.options().dtype(at::kLong));
  int64_t* out = result.data_ptr<int64_t>();
  for (int64_t row : by_rank)
    if (row >= 0) *out++ = row;
  return result;
}

enum Method { kNaive = 0, kLinear = 1, kGaussian = 2 };

// Takes the best remaining box again and again and lowers the scores of those it overlaps.
template <typename T>
void soften(const T* boxes, const T* scores, const int64_t* rows, int64_t n, double iou_threshold, double sigma,
            double min_score, int64_t method, T offset, std::vector<std::pair<T, int64_t>>& chosen) {
  Boxes<T> left;
  left.reserve(n);
  std::vector<T> score, iou(n);
  std::vector<int64_t> row;
  const T least = static_cast<T>(min_score), limit = static_cast<T>(iou_threshold);
  for (int64_t i = 0; i < n; ++i) {
    if (!(scores[rows[i]] >= least)) continue;
    left.push(boxes + 4 * rows[i], area_of(boxes + 4 * rows[i], offset));
    score.push_back(scores[rows[i]]);
    row.push_back(rows[i]);
  }
  for (int64_t remaining = left.size(); remaining > 0;) {
    const int64_t best = std::max_element(score.begin(), score.begin() + remaining) - score.begin();
    const T box[4] = {left.x1[best], left.y1[best], left.x2[best], left.y2[best]};
    const T area = left.area[best];
    chosen.emplace_back(score[best], row[best]);
    score[best] = -1;
    MMDET_DISPATCH(overlaps(left.view(), remaining, box, area, offset, iou.data()));
    int64_t kept = 0;  // packs what is left, in order, so that ties stay with the lower place
    for (int64_t k = 0; k < remaining; ++k) {
      if (k == best) continue;
      T s = score[k];
      if (method == kGaussian) {
        if (iou[k] > 0) s *= static_cast<T>(std::exp(-double(iou[k]) * iou[k] / sigma));
      } else if (iou[k] > limit) {
        s *= method == kLinear ? T(1) - iou[k] : T(0);
      }
      if (!(s >= least) || (method == kNaive && s == 0)) continue;
      left.x1[kept] = left.x1[k], left.y1[kept] = left.y1[k], left.x2[kept] = left.x2[k];
      left.y2[kept] = left.y2[k], left.area[kept] = left.area[k], score[kept] = s, row[kept] = row[k];
      ++kept;
    }
    remaining = kept;
  }
}

std::tuple<at::Tensor, at::Tensor> soft_nms(const at::Tensor& boxes, const at::Tensor& scores,
                                            const std::optional<at::Tensor>& idxs, double iou_threshold, double sigma,
                                            double min_score, int64_t method, double offset) {
  check(boxes, scores, idxs, "soft_nms");
  TORCH_CHECK_VALUE(method >= kNaive && method <= kGaussian, "soft_nms: method must be 0, 1 or 2, got ", method);
  const auto type = boxes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor plain = boxes.to(type).contiguous(), values = scores.to(type).contiguous();
  const Ranking r = rank_boxes(scores, idxs);
  at::Tensor keep, kept_scores;
  AT_DISPATCH_FLOATING_TYPES(type, "soft_nms", [&] {
    using Chosen = std::vector<std::pair<scalar_t, int64_t>>;
    std::vector<Chosen> per_class(r.segment.size() - 1);
    for_each_segment(r, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        soften(plain.const_data_ptr<scalar_t>(), values.const_data_ptr<scalar_t>(), r.row.data() + r.segment[s],
               r.segment[s + 1] - r.segment[s], iou_threshold, sigma, min_score, method,
               static_cast<scalar_t>(offset), per_class[s]);
    });
    Chosen all;
    for (const auto& chosen : per_class) all.insert(all.end(), chosen.begin(), chosen.end());
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    keep = at::empty({static_cast<int64_t>(all.size())}, boxes.options().dtype(at::kLong));
    kept_scores = at::empty({static_cast<int64_t>(all.size())}, values.options());
    for (size_t i = 0; i < all.size(); ++i) {
      keep.data_ptr<int64_t>()[i] = all[i].second;
      kept_scores.data_ptr<scalar_t>()[i] = all[i].first;
    }
  });
  return {keep, kept_scores.to(scores.scalar_type())};
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CPU, m) {
  m.impl("nms", mmdet::nms);
  m.impl("soft_nms", mmdet::soft_nms);
}

// Pasting predicted masks, writing them as COCO run lengths, rasterising polygons: on the CPU.
//
// A mask (m_h, m_w) of probabilities covers its box; a pixel's value is the bilinear sample at its centre, zero
// beyond the border (grid_sample with align_corners=False). Both routes below compute it by the same two
// interpolations in the same order, across and then down, so they agree in every bit.
//
// Run lengths go down the columns. Between two mask rows a column is a straight line, which crosses the threshold
// at most once: its pixels need not be visited, only the crossing found.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "../common.h"
#include "fresh.h"

namespace mmdet {
namespace {

// Where the pixels [first, last) of one image axis sample a mask axis of `cells` cells that spans start..stop.
// Pixel i lies between the padded cells low[i - first] and low[i - first] + 1 (0 is the border's zero).
struct Axis {
  int64_t first = 0, last = 0;
  std::vector<int> low;
  std::vector<float> weight;

  void build(float start, float stop, int64_t cells, int64_t pixels) {
    low.clear();
    weight.clear();
    first = last = 0;
    const float side = stop - start;
    if (!(side > 0) || !std::isfinite(side)) return;  // empty, infinite or NaN boxes have no pixels
    const float scale = static_cast<float>(cells) / side;
    const double margin = 2.0 + 0.5 * double(side) / double(cells);
    const int64_t begin = static_cast<int64_t>(std::clamp(std::floor(double(start) - margin), 0.0, double(pixels)));
    const int64_t end = static_cast<int64_t>(std::clamp(std::ceil(double(stop) + margin), 0.0, double(pixels)));
    for (int64_t i = begin; i < end; ++i) {
      const float at = (static_cast<float>(i) + 0.5f - start) * scale + 0.5f;  // in padded cells
      if (!(at > 0.f && at < static_cast<float>(cells + 1))) {
        if (!low.empty()) break;
        continue;
      }
      if (low.empty()) first = i;
      low.push_back(static_cast<int>(at));
      weight.push_back(at - static_cast<float>(low.back()));
    }
    last = first + static_cast<int64_t>(low.size());
  }
};

inline float between(float a, float b, float weight) { return a + weight * (b - a); }

// Interpolates one mask across: result[row + 1][x] for padded rows 0 .. rows + 1, whose outermost are zero.
void interpolate_across(const float* mask, int64_t rows, int64_t cells, const Axis& columns, std::vector<float>& padded,
                        std::vector<float>& result) {
  const int64_t width = columns.last - columns.first;
  padded.assign(cells + 2, 0.f);
  result.assign((rows + 2) * width, 0.f);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(mask + r * cells, cells, padded.begin() + 1);
    float* out = result.data() + (r + 1) * width;
    for (int64_t x = 0; x < width; ++x)
      out[x] = between(padded[columns.low[x]], padded[columns.low[x] + 1], columns.weight[x]);
  }
}

void check(const at::Tensor& masks, const at::Tensor& boxes, int64_t height, int64_t width, double threshold,
           const char* op) {
  check_boxes(boxes, 4, op);
  TORCH_CHECK_VALUE(masks.dim() == 3 && masks.size(0) == boxes.size(0), op, ": masks must be (", boxes.size(0),
                    ", h, w), got ", masks.sizes());
  TORCH_CHECK_VALUE(masks.size(1) > 0 && masks.size(2) > 0, op, ": masks have no cells: ", masks.sizes());
  TORCH_CHECK_VALUE(masks.device().is_cpu() && boxes.device().is_cpu(), op, ": masks and boxes must share a device");
  TORCH_CHECK_VALUE(threshold > 0, op, ": threshold must be above 0, got ", threshold);
  check_int32(height, "image height", op);
  check_int32(width, "image width", op);
  check_int32(masks.size(1) + 2, "mask height", op);
  check_int32(masks.size(2) + 2, "mask width", op);
}

at::Tensor paste_masks(const at::Tensor& masks, const at::Tensor& boxes, int64_t height, int64_t width,
                       double threshold) {
  check(masks, boxes, height, width, threshold, "paste_masks");
  const at::Tensor values = masks.to(at::kFloat).contiguous(), corners = boxes.to(at::kFloat).contiguous();
  const int64_t n = masks.size(0), mask_h = masks.size(1), mask_w = masks.size(2);
  at::Tensor result = at::empty({n, height, width}, masks.options().dtype(at::kBool));
  prefer_large_pages(result);
  if (result.numel() == 0) return result;
  bool* out = result.data_ptr<bool>();
  const float limit = static_cast<float>(threshold);
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    Axis rows, columns;
    std::vector<float> padded, across;
    for (int64_t d = begin; d < end; ++d) {
      const float* box = corners.const_data_ptr<float>() + 4 * d;
      bool* image = out + d * height * width;
      std::memset(image, 0, height * width);
      columns.build(box[0], box[2], mask_w, width);
      rows.build(box[1], box[3], mask_h, height);
      interpolate_across(values.const_data_ptr<float>() + d * mask_h * mask_w, mask_h, mask_w, columns, padded, across);
      const int64_t span = columns.last - columns.first;
      for (int64_t y = rows.first; y < rows.last; ++y) {
        const float* above = across.data() + rows.low[y - rows.first] * span;
        const float* below = above + span;
        const float weight = rows.weight[y - rows.first];
        bool* line = image + y * width + columns.first;
        for (int64_t x = 0; x < span; ++x) line[x] = between(above[x], below[x], weight) >= limit;
      }
    }
  });
  return result;
}

// COCO's compressed counts: each count but the first three as the difference to the one before the last, in
// groups of five bits, low first, the sixth bit saying that more follow. Pixels are numbered down the columns.
class Runs {
 public:
  // pixels [begin, end) are inside; intervals come in order and may touch
  void add(int64_t begin, int64_t end) {
    if (begin == stop_ && stop_ > start_) {
      stop_ = end;
      return;
    }
    flush();
    start_ = begin;
    stop_ = end;
  }
  std::string finish(int64_t total) {
    flush();
    if (position_ < total || written_ == 0) write(total - position_);
    return std::move(text_);
  }

 private:
  void flush() {
    if (stop_ == start_) return;
    write(start_ - position_);
    write(stop_ - start_);
    position_ = stop_;
    start_ = stop_;
  }
  void write(int64_t count) {
    int64_t rest = written_ > 2 ? count - counts_[written_ % 2] : count;
    counts_[written_ % 2] = count;
    ++written_;
    for (bool more = true; more;) {
      const int64_t group = rest & 31;
      rest >>= 5;
      more = (group & 16) ? rest != -1 : rest != 0;
      text_.push_back(static_cast<char>((more ? group | 32 : group) + 48));
    }
  }

  std::string text_;
  int64_t counts_[2] = {0, 0};  // the last two written
  int64_t written_ = 0, position_ = 0, start_ = 0, stop_ = 0;
};

void run_lengths(const Axis& rows, const Axis& columns, const std::vector<float>& across, int64_t height, float limit,
                 const std::vector<int64_t>& lines, Runs& runs) {
  const int64_t span = columns.last - columns.first;
  for (int64_t x = 0; x < span; ++x) {
    const int64_t top = (columns.first + x) * height + rows.first;
    for (size_t s = 0; s + 1 < lines.size(); ++s) {  // pixels between the same two mask rows
      const int64_t first = lines[s], last = lines[s + 1] - 1;
      const float a = across[rows.low[first] * span + x], b = across[(rows.low[first] + 1) * span + x];
      const auto inside = [&](int64_t i) { return between(a, b, rows.weight[i]) >= limit; };
      const bool at_first = inside(first), at_last = inside(last);
      if (at_first == at_last) {
        if (at_first) runs.add(top + first, top + last + 1);
        continue;
      }
      int64_t low = first, high = last;  // monotone in between: bisect
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (inside(middle) == at_first ? low : high) = middle;
      }
      if (at_first) {
        runs.add(top + first, top + high);
      } else {
        runs.add(top + high, top + last + 1);
      }
    }
  }
}

std::tuple<at::Tensor, at::Tensor> masks_to_rle(const at::Tensor& masks, const at::Tensor& boxes, int64_t height,
                                                int64_t width, double threshold) {
  check(masks, boxes, height, width, threshold, "masks_to_rle");
  TORCH_CHECK_VALUE(height * width < (int64_t(1) << 32), "masks_to_rle: COCO counts pixels in 32 bits, the image has ",
                    height, " x ", width);
  const at::Tensor values = masks.to(at::kFloat).contiguous(), corners = boxes.to(at::kFloat).contiguous();
  const int64_t n = masks.size(0), mask_h = masks.size(1), mask_w = masks.size(2);
  std::vector<std::string> texts(n);
  const float limit = static_cast<float>(threshold);
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    Axis rows, columns;
    std::vector<float> padded, across;
    std::vector<int64_t> lines;
    for (int64_t d = begin; d < end; ++d) {
      const float* box = corners.const_data_ptr<float>() + 4 * d;
      columns.build(box[0], box[2], mask_w, width);
      rows.build(box[1], box[3], mask_h, height);
      Runs runs;
      if (rows.last > rows.first && columns.last > columns.first) {
        interpolate_across(values.const_data_ptr<float>() + d * mask_h * mask_w, mask_h, mask_w, columns, padded,
                           across);
        lines.assign(1, 0);
        for (int64_t i = 1; i < rows.last - rows.first; ++i)
          if (rows.low[i] != rows.low[i - 1]) lines.push_back(i);
        lines.push_back(rows.last - rows.first);
        run_lengths(rows, columns, across, height, limit, lines, runs);
      }
      texts[d] = runs.finish(height * width);
    }
  });
  int64_t total = 0;
  at::Tensor offsets = at::empty({n + 1}, at::TensorOptions().dtype(at::kLong));
  for (int64_t d = 0; d < n; ++d) offsets.data_ptr<int64_t>()[d] = total, total += static_cast<int64_t>(texts[d].size());
  offsets.data_ptr<int64_t>()[n] = total;
  at::Tensor bytes = at::empty({total}, at::TensorOptions().dtype(at::kByte));
  uint8_t* out = bytes.data_ptr<uint8_t>();
  for (const auto& text : texts) {
    std::memcpy(out, text.data(), text.size());
    out += text.size();
  }
  return {bytes, offsets};
}

// Toggles, in a column-major (height, width) image, every pixel from which on the polygon's inside changes: COCO's
// rasterisation. Corners are rounded to fifths of a pixel; an edge is a line of fifths; where it passes from
// fifth 2 to fifth 3 of a column (the pixel's middle), the column's inside changes below its upper fifth.
class Polygon {
 public:
  Polygon(int64_t height, int64_t width, uint8_t* toggles) : height_(height), width_(width), toggles_(toggles) {}

  static int64_t fifth(double v) {  // truncation toward zero is COCO's; the clamp keeps wild values in range
    return static_cast<int64_t>(std::clamp(5 * v + .5, -1e9, 1e9));
  }

  void edge(int64_t xs, int64_t ys, int64_t xe, int64_t ye) {
    const int64_t dx = std::abs(xe - xs), dy = std::abs(ye - ys);
    if (dx == 0) return;
    if ((dx >= dy && xs > xe) || (dx < dy && ys > ye)) {
      std::swap(xs, xe);
      std::swap(ys, ye);
    }
    const double slope = dx >= dy ? static_cast<double>(ye - ys) / dx : static_cast<double>(xe - xs) / dy;
    const int64_t left = std::max<int64_t>(std::min(xs, xe), 0), right = std::max(xs, xe);
    for (int64_t c = left < 3 ? 0 : (left + 2) / 5; c < width_; ++c) {  // first column with 5c + 2 >= left
      const int64_t u = 5 * c + 2;
      if (u + 1 > right) break;
      if (u < left) continue;
      int64_t v;
      if (dx >= dy) {
        const int64_t t = u - xs;
        v = std::min(static_cast<int64_t>(ys + slope * t + .5), static_cast<int64_t>(ys + slope * (t + 1) + .5));
      } else {  // t: the first step on the far side of the middle
        const auto x_at = [&](int64_t t) { return static_cast<int64_t>(xs + slope * t + .5); };
        int64_t t = static_cast<int64_t>((u + .5 - xs) / slope);
        t = std::clamp<int64_t>(t, 0, dy);
        const auto beyond = [&](int64_t s) { return slope > 0 ? x_at(s) > u : x_at(s) <= u; };
        while (t > 0 && beyond(t)) --t;
        while (t < dy && !beyond(t)) ++t;
        if (!beyond(t) || t == 0) continue;
        v = t - 1 + ys;
      }
      const double row = std::ceil(std::clamp((v + .5) / 5 - .5, 0.0, static_cast<double>(height_)));
      const int64_t at = c * height_ + static_cast<int64_t>(row);
      if (at < height_ * width_) toggles_[at] ^= 1;
    }
  }

 private:
  int64_t height_, width_;
  uint8_t* toggles_;
};

at::Tensor rasterize_polygons(const at::Tensor& points, const at::Tensor& parts, const at::Tensor& instances,
                              const at::Tensor& indices, const at::Tensor& boxes, int64_t height, int64_t width) {
  const char* op = "rasterize_polygons";
  check_boxes(boxes, 4, op);
  TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) == 2, op, ": points must be (p, 2), got ", points.sizes());
  TORCH_CHECK_VALUE(parts.dim() == 1 && instances.dim() == 1 && parts.numel() > 0 && instances.numel() > 0, op,
                    ": parts and instances must be offsets that begin with 0");
  TORCH_CHECK_VALUE(indices.dim() == 1 && indices.size(0) == boxes.size(0), op, ": needs one index per box");
  for (const auto* t : {&points, &parts, &instances, &indices, &boxes})
    TORCH_CHECK_VALUE(t->device().is_cpu(), op, ": all inputs must be on the CPU");
  TORCH_CHECK_VALUE(height >= 0 && width >= 0, op, ": the size must not be negative");
  check_int32(5 * height, "five times the height", op);
  check_int32(5 * width, "five times the width", op);
  const at::Tensor xy = points.to(at::kDouble).contiguous(), corners = boxes.to(at::kDouble).contiguous();
  const at::Tensor part = parts.to(at::kLong).contiguous(), instance = instances.to(at::kLong).contiguous();
  const at::Tensor which = indices.to(at::kLong).contiguous();
  const double* p = xy.const_data_ptr<double>();
  const int64_t *part_at = part.const_data_ptr<int64_t>(), *instance_at = instance.const_data_ptr<int64_t>();
  const int64_t num_parts = part.numel() - 1, num_instances = instance.numel() - 1;
  const auto rising = [](const int64_t* v, int64_t n, int64_t top) {
    if (v[0] != 0 || v[n] != top) return false;
    for (int64_t i = 0; i < n; ++i)
      if (v[i + 1] < v[i]) return false;
    return true;
  };
  TORCH_CHECK_VALUE(rising(part_at, num_parts, xy.size(0)) && rising(instance_at, num_instances, num_parts), op,
                    ": offsets must rise from 0 to the number of points and of parts");
  for (int64_t r = 0; r < which.numel(); ++r) {
    const int64_t i = which.const_data_ptr<int64_t>()[r];
    TORCH_CHECK_INDEX(i >= 0 && i < num_instances, op, ": index ", i, " of ", num_instances, " instances");
  }
  at::Tensor result = at::empty({boxes.size(0), height, width}, points.options().dtype(at::kByte));
  if (result.numel() == 0) return result;
  uint8_t* out = result.data_ptr<uint8_t>();
  at::parallel_for(0, boxes.size(0), 4, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> toggles(height * width), filled(height * width);
    std::vector<int64_t> x, y;
    for (int64_t r = begin; r < end; ++r) {
      const double* box = corners.const_data_ptr<double>() + 4 * r;
      const int64_t i = which.const_data_ptr<int64_t>()[r];
      const double scale_x = width / std::max(box[2] - box[0], 1.0), scale_y = height / std::max(box[3] - box[1], 1.0);
      std::fill(filled.begin(), filled.end(), 0);
      for (int64_t s = instance_at[i]; s < instance_at[i + 1]; ++s) {
        const int64_t n = part_at[s + 1] - part_at[s];
        const double* corner = p + 2 * part_at[s];
        x.resize(n);
        y.resize(n);
        bool finite = true;
        for (int64_t k = 0; k < n; ++k) {
          const double px = (corner[2 * k] - box[0]) * scale_x, py = (corner[2 * k + 1] - box[1]) * scale_y;
          finite = finite && std::isfinite(px) && std::isfinite(py);
          if (!finite) break;
          x[k] = Polygon::fifth(px);
          y[k] = Polygon::fifth(py);
        }
        if (!finite) continue;  // infinite and NaN boxes or corners enclose nothing
        std::fill(toggles.begin(), toggles.end(), 0);
        Polygon polygon(height, width, toggles.data());
        for (int64_t k = 0; k < n; ++k) polygon.edge(x[k], y[k], x[(k + 1) % n], y[(k + 1) % n]);
        uint8_t inside = 0;
        for (size_t k = 0; k < toggles.size(); ++k) {
          inside ^= toggles[k];
          filled[k] |= inside;
        }
      }
      uint8_t* image = out + r * height * width;
      for (int64_t c = 0; c < width; ++c)
        for (int64_t row = 0; row < height; ++row) image[row * width + c] = filled[c * height + row];
    }
  });
  return result;
}

}  // namespace
}  // namespace mmdet

TORCH_LIBRARY_IMPL(mmdet, CPU, m) {
  m.impl("paste_masks", mmdet::paste_masks);
  m.impl("masks_to_rle", mmdet::masks_to_rle);
  m.impl("rasterize_polygons", mmdet::rasterize_polygons);
}

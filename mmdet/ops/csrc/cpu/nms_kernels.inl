// Inner loops of NMS. Included once per instruction set (see simd.h) inside a namespace; no header may be
// included here. Comparisons keep std::max's operand order, so NaN boxes overlap nothing, as everywhere.

// Whether any of `n` kept boxes overlaps one box by more than `limit`
template <typename T>
bool any_overlap(const BoxView<T> kept, int64_t n, const T* box, T area, T limit, T offset) {
  constexpr int64_t kChunk = 64;
  const T bx1 = box[0], by1 = box[1], bx2 = box[2], by2 = box[3];
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t last = first + kChunk < n ? first + kChunk : n;
    int hits = 0;
    for (int64_t k = first; k < last; ++k) {
      const T left = kept.x1[k] < bx1 ? bx1 : kept.x1[k];
      const T top = kept.y1[k] < by1 ? by1 : kept.y1[k];
      const T right = bx2 < kept.x2[k] ? bx2 : kept.x2[k];
      const T bottom = by2 < kept.y2[k] ? by2 : kept.y2[k];
      const T dx = right - left + offset, dy = bottom - top + offset;
      const T inter = (T(0) < dx ? dx : T(0)) * (T(0) < dy ? dy : T(0));
      hits += inter / (kept.area[k] + area - inter) > limit;
    }
    if (hits) return true;
  }
  return false;
}

// IoU of one box with n others
template <typename T>
void overlaps(const BoxView<T> others, int64_t n, const T* box, T area, T offset, T* iou) {
  const T bx1 = box[0], by1 = box[1], bx2 = box[2], by2 = box[3];
  for (int64_t k = 0; k < n; ++k) {
    const T left = bx1 < others.x1[k] ? others.x1[k] : bx1;
    const T top = by1 < others.y1[k] ? others.y1[k] : by1;
    const T right = others.x2[k] < bx2 ? others.x2[k] : bx2;
    const T bottom = others.y2[k] < by2 ? others.y2[k] : by2;
    const T dx = right - left + offset, dy = bottom - top + offset;
    const T inter = (T(0) < dx ? dx : T(0)) * (T(0) < dy ? dy : T(0));
    iou[k] = inter / (area + others.area[k] - inter);
  }
}

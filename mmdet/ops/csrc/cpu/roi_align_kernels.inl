// Inner loops of RoIAlign over a block of kLanes channels. Included once per instruction set (see simd.h) inside
// a namespace; no header may be included here. MMDET_VECTOR_BYTES is the width of its registers. The vectors are spelled
// out because compilers leave these loops scalar.

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(MMDET_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

// tile[bin_y * width + bin_x][lane] += sum over cells of row weight * column weight * map[cell][lane]
template <typename T>
void forward_tile(const T* map, int64_t row_stride, int64_t cell_stride, const AxisView<T> rows,
                  const AxisView<T> columns, T* tile) {
  using V = typename Vector<T>::type;
  constexpr int kLanes = lanes<T>(), kParts = kLanes * sizeof(T) / sizeof(V);
  const int width = columns.num_bins;
  for (int r = 0; r < rows.num_cells; ++r) {
    const T* row = map + rows.cell[r] * row_stride;
    for (int x = 0; x < width; ++x) {
      V sum[kParts] = {};
      for (int i = columns.bin_begin[x]; i < columns.bin_begin[x + 1]; ++i) {
        const T w = columns.bin_weight[i];
        const V* cell = reinterpret_cast<const V*>(row + columns.bin_cell[i] * cell_stride);
#pragma GCC unroll 16
        for (int k = 0; k < kParts; ++k) sum[k] += w * cell[k];
      }
      for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
        const T w = rows.cell_weight[j];
        V* target = reinterpret_cast<V*>(tile + (int64_t(rows.cell_bin[j]) * width + x) * kLanes);
#pragma GCC unroll 16
        for (int k = 0; k < kParts; ++k) target[k] += w * sum[k];
      }
    }
  }
}

// map[cell][lane] += the transposed sum; scratch holds (width, kLanes)
template <typename T>
void backward_tile(T* map, int64_t row_stride, int64_t cell_stride, const AxisView<T> rows,
                   const AxisView<T> columns, const T* tile, T* scratch) {
  using V = typename Vector<T>::type;
  constexpr int kLanes = lanes<T>(), kParts = kLanes * sizeof(T) / sizeof(V);
  const int64_t size = int64_t(columns.num_bins) * kParts;
  V* merged = reinterpret_cast<V*>(scratch);
  for (int r = 0; r < rows.num_cells; ++r) {
    for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
      const T w = rows.cell_weight[j];
      const V* source = reinterpret_cast<const V*>(tile) + rows.cell_bin[j] * size;
      if (j == rows.cell_begin[r]) {
        for (int64_t k = 0; k < size; ++k) merged[k] = w * source[k];
      } else {
        for (int64_t k = 0; k < size; ++k) merged[k] += w * source[k];
      }
    }
    T* row = map + rows.cell[r] * row_stride;
    for (int q = 0; q < columns.num_cells; ++q) {
      V* cell = reinterpret_cast<V*>(row + columns.cell[q] * cell_stride);
      V sum[kParts];
#pragma GCC unroll 16
      for (int k = 0; k < kParts; ++k) sum[k] = cell[k];
      for (int i = columns.cell_begin[q]; i < columns.cell_begin[q + 1]; ++i) {
        const T w = columns.cell_weight[i];
        const V* source = merged + columns.cell_bin[i] * kParts;
#pragma GCC unroll 16
        for (int k = 0; k < kParts; ++k) sum[k] += w * source[k];
      }
#pragma GCC unroll 16
      for (int k = 0; k < kParts; ++k) cell[k] = sum[k];
    }
  }
}

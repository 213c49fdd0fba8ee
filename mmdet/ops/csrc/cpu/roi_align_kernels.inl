// Inner loops of RoIAlign over contiguous channels. Included once per instruction set (see simd.h) inside a
// namespace; no header may be included here. A RoI is separable: rows and columns carry their own weights.

// out[bin_y][bin_x][c] += sum over cells of row weight * column weight * map[cell][c], for n channels
template <typename T>
void forward_tile(const T* map, int64_t row_stride, int64_t cell_stride, const AxisView<T> rows,
                  const AxisView<T> columns, int64_t n, T* out, int64_t width) {
  for (int r = 0; r < rows.num_cells; ++r) {
    const T* row = map + rows.cell[r] * row_stride;
    for (int x = 0; x < columns.num_bins; ++x) {
      const int first = columns.bin_begin[x], last = columns.bin_begin[x + 1];
      if (first == last) continue;
      for (int64_t c0 = 0; c0 < n; c0 += kLanes) {
        const int lanes = n - c0 < kLanes ? static_cast<int>(n - c0) : kLanes;
        T sum[kLanes] = {};
        if (lanes == kLanes) {
          for (int i = first; i < last; ++i) {
            const T w = columns.bin_weight[i];
            const T* cell = row + columns.bin_cell[i] * cell_stride + c0;
#pragma GCC unroll 64
            for (int k = 0; k < kLanes; ++k) sum[k] = MMDET_FMA(w, cell[k], sum[k]);
          }
          for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
            const T w = rows.cell_weight[j];
            T* target = out + (rows.cell_bin[j] * width + x) * n + c0;
#pragma GCC unroll 64
            for (int k = 0; k < kLanes; ++k) target[k] = MMDET_FMA(w, sum[k], target[k]);
          }
        } else {
          for (int i = first; i < last; ++i) {
            const T w = columns.bin_weight[i];
            const T* cell = row + columns.bin_cell[i] * cell_stride + c0;
            for (int k = 0; k < lanes; ++k) sum[k] += w * cell[k];
          }
          for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
            const T w = rows.cell_weight[j];
            T* target = out + (rows.cell_bin[j] * width + x) * n + c0;
            for (int k = 0; k < lanes; ++k) target[k] += w * sum[k];
          }
        }
      }
    }
  }
}

// map[cell][c] += the transposed sum, for n channels; scratch holds (width, n)
template <typename T>
void backward_tile(T* map, int64_t row_stride, int64_t cell_stride, const AxisView<T> rows,
                   const AxisView<T> columns, int64_t n, const T* grad, int64_t width, T* scratch) {
  for (int r = 0; r < rows.num_cells; ++r) {
    const int64_t size = width * n;
    for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
      const T w = rows.cell_weight[j];
      const T* source = grad + rows.cell_bin[j] * size;
      if (j == rows.cell_begin[r]) {
        for (int64_t k = 0; k < size; ++k) scratch[k] = w * source[k];
      } else {
        for (int64_t k = 0; k < size; ++k) scratch[k] = MMDET_FMA(w, source[k], scratch[k]);
      }
    }
    T* row = map + rows.cell[r] * row_stride;
    for (int q = 0; q < columns.num_cells; ++q) {
      T* cell = row + columns.cell[q] * cell_stride;
      for (int i = columns.cell_begin[q]; i < columns.cell_begin[q + 1]; ++i) {
        const T w = columns.cell_weight[i];
        const T* source = scratch + columns.cell_bin[i] * n;
        for (int64_t k = 0; k < n; ++k) cell[k] = MMDET_FMA(w, source[k], cell[k]);
      }
    }
  }
}

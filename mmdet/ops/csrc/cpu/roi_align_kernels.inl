// Inner loops of RoIAlign over a block of kLanes channels. Included once per instruction set (see simd.h) inside
// a namespace; no header may be included here.

// tile[bin_y * width + bin_x][lane] += sum over cells of row weight * column weight * map[cell][lane]
template <typename T>
void forward_tile(const T* map, int64_t row_stride, int64_t cell_stride, const AxisView<T> rows,
                  const AxisView<T> columns, T* tile) {
  constexpr int kLanes = lanes<T>();
  const int width = columns.num_bins;
  for (int r = 0; r < rows.num_cells; ++r) {
    const T* row = map + rows.cell[r] * row_stride;
    for (int x = 0; x < width; ++x) {
      T sum[kLanes] = {};
      for (int i = columns.bin_begin[x]; i < columns.bin_begin[x + 1]; ++i) {
        const T w = columns.bin_weight[i];
        const T* cell = row + columns.bin_cell[i] * cell_stride;
#pragma GCC unroll 64
        for (int k = 0; k < kLanes; ++k) sum[k] = MMDET_FMA(w, cell[k], sum[k]);
      }
      for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
        const T w = rows.cell_weight[j];
        T* target = tile + (int64_t(rows.cell_bin[j]) * width + x) * kLanes;
#pragma GCC unroll 64
        for (int k = 0; k < kLanes; ++k) target[k] = MMDET_FMA(w, sum[k], target[k]);
      }
    }
  }
}

// map[cell][lane] += the transposed sum; scratch holds (width, kLanes)
template <typename T>
void backward_tile(T* map, int64_t row_stride, int64_t cell_stride, const AxisView<T> rows,
                   const AxisView<T> columns, const T* tile, T* scratch) {
  constexpr int kLanes = lanes<T>();
  const int64_t size = int64_t(columns.num_bins) * kLanes;
  for (int r = 0; r < rows.num_cells; ++r) {
    for (int j = rows.cell_begin[r]; j < rows.cell_begin[r + 1]; ++j) {
      const T w = rows.cell_weight[j];
      const T* source = tile + rows.cell_bin[j] * size;
      if (j == rows.cell_begin[r]) {
        for (int64_t k = 0; k < size; ++k) scratch[k] = w * source[k];
      } else {
        for (int64_t k = 0; k < size; ++k) scratch[k] = MMDET_FMA(w, source[k], scratch[k]);
      }
    }
    T* row = map + rows.cell[r] * row_stride;
    for (int q = 0; q < columns.num_cells; ++q) {
      T* cell = row + columns.cell[q] * cell_stride;
      T sum[kLanes];
#pragma GCC unroll 64
      for (int k = 0; k < kLanes; ++k) sum[k] = cell[k];
      for (int i = columns.cell_begin[q]; i < columns.cell_begin[q + 1]; ++i) {
        const T w = columns.cell_weight[i];
        const T* source = scratch + columns.cell_bin[i] * kLanes;
#pragma GCC unroll 64
        for (int k = 0; k < kLanes; ++k) sum[k] = MMDET_FMA(w, source[k], sum[k]);
      }
#pragma GCC unroll 64
      for (int k = 0; k < kLanes; ++k) cell[k] = sum[k];
    }
  }
}

// One chunk of rows, for one instruction set; see batch_norm.cpp.

// Sums over at most kBlock rows are taken in A; then in double.
constexpr int64_t kBlock = 64, kTile = 64;

template <typename T, typename A>
void chunk_moments(const T* y, int64_t rows, int64_t channels, double* mean, double* square) {
  A sum[kTile], about[kTile];
  for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
    const int64_t width = std::min(kTile, channels - c0);
    for (int64_t c = 0; c < width; ++c) mean[c0 + c] = square[c0 + c] = 0;
    for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
      const int64_t height = std::min(kBlock, rows - r0);
      const T* block = y + r0 * channels + c0;
      for (int64_t c = 0; c < width; ++c) sum[c] = 0;
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<A>(load(block + r * channels + c));
      for (int64_t c = 0; c < width; ++c) sum[c] /= static_cast<A>(height), about[c] = 0;
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) {
          const A d = static_cast<A>(load(block + r * channels + c)) - sum[c];
          about[c] += d * d;
        }
      // Chan, Golub, LeVeque 1979: two means and two sums of squares about them become one of each.
      const double share = static_cast<double>(height) / static_cast<double>(r0 + height);
      const double cross = static_cast<double>(r0) * share;
      for (int64_t c = 0; c < width; ++c) {
        const double d = static_cast<double>(sum[c]) - mean[c0 + c];
        mean[c0 + c] += d * share;
        square[c0 + c] += static_cast<double>(about[c]) + d * d * cross;
      }
    }
  }
}

template <typename T, typename A>
void chunk_sums(const T* grad, const T* y, const double* mean, int64_t rows, int64_t channels, double* sum_g,
                double* sum_gd) {
  A of_g[kTile], of_gd[kTile], centre[kTile];
  for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
    const int64_t width = std::min(kTile, channels - c0);
    for (int64_t c = 0; c < width; ++c) sum_g[c0 + c] = sum_gd[c0 + c] = 0, centre[c] = static_cast<A>(mean[c0 + c]);
    for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
      const int64_t height = std::min(kBlock, rows - r0), start = r0 * channels + c0;
      for (int64_t c = 0; c < width; ++c) of_g[c] = of_gd[c] = 0;
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) {
          const A g = static_cast<A>(load(grad + start + r * channels + c));
          of_g[c] += g;
          of_gd[c] += g * (static_cast<A>(load(y + start + r * channels + c)) - centre[c]);
        }
      for (int64_t c = 0; c < width; ++c) {
        sum_g[c0 + c] += static_cast<double>(of_g[c]);
        sum_gd[c0 + c] += static_cast<double>(of_gd[c]);
      }
    }
  }
}

// out = scale (grad - shift - (y - mean) slope)
template <typename T, typename S>
void chunk_input_grad(const T* grad, const T* y, const S* mean, const S* scale, const S* shift, const S* slope,
                      int64_t rows, int64_t channels, T* out) {
  for (int64_t r = 0; r < rows; ++r, grad += channels, y += channels, out += channels)
    for (int64_t c = 0; c < channels; ++c)
      store(out + c, scale[c] * (load(grad + c) - shift[c] - (load(y + c) - mean[c]) * slope[c]));
}

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "isa.hpp"
#include "stamps.hpp"

namespace skyloom {
namespace {

template <class T>
struct Taps {
  const T* values;
  int first, last;  // those outside of [first, last) are 0

  Taps(const T* taps, int width) : values(taps), first(0), last(width) {
    while (first < last && values[first] == 0) ++first;
    while (last > first && values[last - 1] == 0) --last;
  }
};

// out[y][x] = sum_u taps[u] in[y * stride + x + u * step], for ROWS rows and one register of columns, `columns` of them kept.
template <int LANES, int ROWS, class T>
SKYLOOM_INLINE void correlate(const T* in, std::int64_t stride, std::int64_t step, const Taps<T>& taps, T* out,
                              std::int64_t out_stride, std::int64_t columns) {
  constexpr int kWide = LANES * sizeof(float) / sizeof(T);
  typedef T Vec __attribute__((vector_size(LANES * sizeof(float))));
  Vec sums[ROWS] = {};
  for (int u = taps.first; u < taps.last; ++u) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      Vec pixels;
      std::memcpy(&pixels, in + r * stride + u * step, sizeof pixels);
      sums[r] += taps.values[u] * pixels;
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    if (columns >= kWide)
      std::memcpy(out + r * out_stride, &sums[r], sizeof sums[r]);
    else
      std::memcpy(out + r * out_stride, &sums[r], columns * sizeof(T));
  }
}

template <int LANES, class T>
SKYLOOM_INLINE void correlate_all(const T* in, std::int64_t stride, std::int64_t step, const Taps<T>& taps, T* out,
                                  std::int64_t out_stride, std::int64_t ny, std::int64_t nx) {
  constexpr int kWide = LANES * sizeof(float) / sizeof(T), kRows = 8;
  for (std::int64_t x = 0; x < nx; x += kWide) {
    std::int64_t y = 0;
    for (; y + kRows <= ny; y += kRows)
      correlate<LANES, kRows>(in + y * stride + x, stride, step, taps, out + y * out_stride + x, out_stride, nx - x);
    for (; y < ny; ++y)
      correlate<LANES, 1>(in + y * stride + x, stride, step, taps, out + y * out_stride + x, out_stride, nx - x);
  }
}

template <int LANES, class T>
SKYLOOM_INLINE void filter_any(const FilterBank<T>& bank, const T* stamp, std::int64_t sy, std::int64_t sx, T* out) {
  constexpr int kWide = LANES * sizeof(float) / sizeof(T);
  const std::int64_t ny = sy - bank.width + 1, nx = sx - bank.width + 1, padded = (nx + kWide - 1) / kWide * kWide;
  const std::int64_t stride = padded + bank.width - 1;
  std::vector<T> in(sy * stride), rows(sy * padded);
  for (std::int64_t y = 0; y < sy; ++y) std::copy_n(stamp + y * sx, sx, in.data() + y * stride);
  for (int k = 0; k < bank.n_x; ++k) {
    correlate_all<LANES, T>(in.data(), stride, 1, {bank.along_x + k * bank.width, bank.width}, rows.data(), padded, sy,
                            padded);
    for (std::int64_t m = bank.first[k]; m < bank.first[k + 1]; ++m)
      correlate_all<LANES, T>(rows.data(), padded, padded, {bank.along_y + m * bank.width, bank.width},
                              out + m * ny * nx, nx, ny, nx);
  }
}

template <int LANES>
SKYLOOM_INLINE void filter_f32_body(const FilterBank<float>& bank, const float* stamp, std::int64_t sy, std::int64_t sx,
                                    float* out) {
  filter_any<LANES, float>(bank, stamp, sy, sx, out);
}

template <int LANES>
SKYLOOM_INLINE void filter_f64_body(const FilterBank<double>& bank, const double* stamp, std::int64_t sy,
                                    std::int64_t sx, double* out) {
  filter_any<LANES, double>(bank, stamp, sy, sx, out);
}

SKYLOOM_DISPATCH_LANES(void, filter_f32,
                       (const FilterBank<float>& bank, const float* stamp, std::int64_t sy, std::int64_t sx, float* out),
                       (bank, stamp, sy, sx, out))
SKYLOOM_DISPATCH_LANES(void, filter_f64,
                       (const FilterBank<double>& bank, const double* stamp, std::int64_t sy, std::int64_t sx,
                        double* out),
                       (bank, stamp, sy, sx, out))

}  // namespace

template <>
void filter_stamp(const FilterBank<float>& bank, const float* stamp, std::int64_t sy, std::int64_t sx, float* out) {
  filter_f32(bank, stamp, sy, sx, out);
}

template <>
void filter_stamp(const FilterBank<double>& bank, const double* stamp, std::int64_t sy, std::int64_t sx, double* out) {
  filter_f64(bank, stamp, sy, sx, out);
}

}  // namespace skyloom

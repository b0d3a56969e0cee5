#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "isa.hpp"
#include "stamps.hpp"

namespace skyloom {
namespace {

constexpr int kTile = 4;   // planes whose products with as many others are summed together
constexpr int kChunk = 16; // pixels to whose multiple planes are padded

template <int LANES>
struct Register {
  typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
};

template <int LANES>
SKYLOOM_INLINE float sum_of(const typename Register<LANES>::Vec& v) {
  if constexpr (LANES == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    typename Register<LANES / 2>::Vec halves[2];
    std::memcpy(halves, &v, sizeof v);
    return sum_of<LANES / 2>(halves[0] + halves[1]);
  }
}

// Products of ROWS planes with kTile others.
template <int LANES, int ROWS>
SKYLOOM_INLINE void tile(const float* a, const float* b, std::int64_t size, float (*products)[kTile]) {
  using Vec = typename Register<LANES>::Vec;
  Vec sums[ROWS][kTile] = {};
  for (std::int64_t p = 0; p < size; p += LANES) {
    Vec left[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) std::memcpy(&left[i], a + i * size + p, sizeof left[i]);
#pragma GCC unroll 8
    for (int j = 0; j < kTile; ++j) {
      Vec right;
      std::memcpy(&right, b + j * size + p, sizeof right);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) sums[i][j] += left[i] * right;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kTile; ++j) products[i][j] = sum_of<LANES>(sums[i][j]);
}

// gram (n, n) = sums over pixels of roots^2 times pairs of planes
template <int LANES>
SKYLOOM_INLINE void gram_of_body(const float* planes, const float* roots, int n, std::int64_t size, double* gram) {
  constexpr int kRows = LANES == 16 ? 4 : 2;  // as many sums as there are registers for
  const std::int64_t padded = (size + kChunk - 1) / kChunk * kChunk, whole = (n + kTile - 1) / kTile * kTile;
  std::vector<float> weighted(whole * padded + kChunk);
  float* rows = weighted.data();
  while (reinterpret_cast<std::uintptr_t>(rows) % (kChunk * sizeof(float)) != 0) ++rows;
  for (int i = 0; i < n; ++i)
    for (std::int64_t p = 0; p < size; ++p) rows[i * padded + p] = roots[p] * planes[i * size + p];
  for (int j = 0; j < whole; j += kTile)
    for (int i = j; i < whole; i += kRows) {
      float products[kRows][kTile];
      tile<LANES, kRows>(rows + i * padded, rows + j * padded, padded, products);
      for (int r = 0; r < kRows && i + r < n; ++r)
        for (int c = 0; c < kTile && j + c < n; ++c) gram[(i + r) * n + j + c] = gram[(j + c) * n + i + r] = products[r][c];
    }
}

SKYLOOM_DISPATCH_LANES(void, gram_of,
                       (const float* planes, const float* roots, int n, std::int64_t size, double* gram),
                       (planes, roots, n, size, gram))

SKYLOOM_INLINE float variance_of(const StampPixels& stamp, std::int64_t p) {
  const float systematic = stamp.eps * stamp.signal[p];
  return stamp.target_variance[p] + stamp.convolved_variance[p] + systematic * systematic;
}

SKYLOOM_INLINE void roots_of_body(const StampPixels& stamp, float* roots) {
  for (std::int64_t p = 0; p < stamp.size; ++p) {
    const float root = 1.0f / std::sqrt(variance_of(stamp, p));
    roots[p] = stamp.good[p] ? root : 0.0f;
  }
}

SKYLOOM_DISPATCH(void, roots_of, (const StampPixels& stamp, float* roots), (stamp, roots))

// sums[p] += factors[0] planes[0][p] + ... for COUNT planes
template <int COUNT>
SKYLOOM_INLINE void add_planes(const float* planes, std::int64_t size, const float* factors, float* __restrict sums) {
  for (std::int64_t p = 0; p < size; ++p) {
    float sum = sums[p];
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k) sum += factors[k] * planes[k * size + p];
    sums[p] = sum;
  }
}

SKYLOOM_INLINE void add_all_body(const float* planes, std::int64_t size, const float* factors, int n, float* sums) {
  int k = 0;
  for (; k + 8 <= n; k += 8) add_planes<8>(planes + k * size, size, factors + k, sums);
  for (; k < n; ++k) add_planes<1>(planes + k * size, size, factors + k, sums);
}

SKYLOOM_DISPATCH(void, add_all, (const float* planes, std::int64_t size, const float* factors, int n, float* sums),
                 (planes, size, factors, n, sums))

SKYLOOM_INLINE double merit_body(const StampPixels& stamp, float most) {
  double sums[kChunk] = {};
  int count = 0;
  for (std::int64_t start = 0; start < stamp.size; start += kChunk) {
    const int width = static_cast<int>(std::min<std::int64_t>(kChunk, stamp.size - start));
    for (int i = 0; i < width; ++i) {
      const std::int64_t p = start + i;
      const float ratio = std::min(stamp.residual[p] * stamp.residual[p] / variance_of(stamp, p), most);
      sums[i] += stamp.good[p] ? ratio : 0.0f;
      count += stamp.good[p];
    }
  }
  return std::accumulate(sums, sums + kChunk, 0.0) / count;
}

SKYLOOM_DISPATCH(double, merit, (const StampPixels& stamp, float most), (stamp, most))

}  // namespace

double stamp_sums(const StampPixels& stamp, int step, double* gram, double* moments) {
  const int n = stamp.n;
  std::vector<float> roots(stamp.size);
  std::vector<double> products((n + 1) * (n + 1));
  roots_of(stamp, roots.data());
  double noise = 0.0;
  for (std::int64_t p = 0; p < stamp.size; ++p) {
    if (p % step > 0) roots[p] = 0.0f;
    noise += double(roots[p]) * roots[p] * stamp.convolved_variance[p];
  }
  gram_of(stamp.planes, roots.data(), n + 1, stamp.size, products.data());
  for (int i = 0; i < n; ++i) {
    std::copy_n(&products[i * (n + 1)], n, gram + i * n);
    moments[i] = products[i * (n + 1) + n];
  }
  return noise;
}

void stamp_residuals(const StampPixels& stamp, const float* local, int n_signal) {
  std::fill_n(stamp.signal, stamp.size, 0.0f);
  std::fill_n(stamp.residual, stamp.size, 0.0f);
  add_all(stamp.planes, stamp.size, local, n_signal, stamp.signal);
  add_all(stamp.planes + n_signal * stamp.size, stamp.size, local + n_signal, stamp.n - n_signal, stamp.residual);
  const float* target = stamp.planes + stamp.n * stamp.size;
  for (std::int64_t p = 0; p < stamp.size; ++p)
    stamp.residual[p] = target[p] - stamp.signal[p] - stamp.residual[p];
}

double stamp_merit(const StampPixels& stamp, float most) { return merit(stamp, most); }

}  // namespace skyloom

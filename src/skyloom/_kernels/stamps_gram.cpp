#include <cstdint>
#include <cstring>
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

}  // namespace

void weighted_gram(const float* planes, const float* roots, int n, std::int64_t size, double* gram) {
  gram_of(planes, roots, n, size, gram);
}

}  // namespace skyloom

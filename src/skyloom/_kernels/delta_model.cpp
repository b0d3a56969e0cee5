#include <algorithm>
#include <cstring>
#include <vector>

#include "delta.hpp"
#include "isa.hpp"

namespace skyloom {
namespace {

constexpr int kChunk = 32;  // columns that are worked on at once

// Registers of LANES / 2 doubles.
template <int LANES>
struct Doubles {
  typedef double Vec __attribute__((vector_size(LANES * sizeof(float))));
  static constexpr int kCount = LANES / 2;
};

// to[lane] = sum_i X^i sum over taps of taps[i][tap] R[row + v][column + u + lane]
template <int LANES>
SKYLOOM_INLINE void apply_chunk(const DeltaGrid& grid, const double* image, const double* taps, const double* X,
                                double* to) {
  using Vec = typename Doubles<LANES>::Vec;
  constexpr int kCount = Doubles<LANES>::kCount, kParts = kChunk / kCount;
  const int n = grid.taps();
  Vec value[kParts] = {};
  for (int i = grid.order; i >= 0; --i) {
    Vec sums[kParts] = {};
    for (int v = 0; v < grid.ky; ++v)
      for (int u = 0; u < grid.kx; ++u) {
        const double tap = taps[i * n + v * grid.kx + u];
        const double* from = image + v * grid.stride() + u;
        for (int p = 0; p < kParts; ++p) {
          Vec pixels;
          std::memcpy(&pixels, from + p * kCount, sizeof pixels);
          sums[p] += tap * pixels;
        }
      }
    for (int p = 0; p < kParts; ++p) {
      Vec x;
      std::memcpy(&x, X + p * kCount, sizeof x);
      value[p] = value[p] * x + sums[p];
    }
  }
  for (int p = 0; p < kParts; ++p) {
    const Vec result = value[p];
    std::memcpy(to + p * kCount, &result, sizeof result);
  }
}

template <int LANES>
SKYLOOM_INLINE void apply_rows_body(const DeltaGrid& grid, const double* padded, const double* coefficients,
                                    std::int64_t start, std::int64_t stop, double* out) {
  const int n = grid.taps();
  std::vector<double> taps((grid.order + 1) * n), edge(grid.ky * (kChunk + grid.kx - 1));
  for (std::int64_t y = start; y < stop; ++y) {
    const double Y = (y - grid.y_centre) / grid.y_scale;
    const double* plane = coefficients;
    std::fill(taps.begin(), taps.end(), 0.0);
    for (int i = 0; i <= grid.order; ++i) {
      double power = 1.0;
      for (int j = 0; j <= grid.order - i; ++j, plane += n, power *= Y)
        for (int tap = 0; tap < n; ++tap) taps[i * n + tap] += power * plane[tap];
    }
    for (std::int64_t x = 0; x < grid.nx; x += kChunk) {
      double X[kChunk], result[kChunk];
      for (int lane = 0; lane < kChunk; ++lane) X[lane] = (x + lane - grid.x_centre) / grid.x_scale;
      const std::int64_t columns = std::min<std::int64_t>(kChunk, grid.nx - x);
      if (columns == kChunk) {
        apply_chunk<LANES>(grid, padded + y * grid.stride() + x, taps.data(), X, out + y * grid.nx + x);
        continue;
      }
      // the last columns: a copy with room for whole chunks
      DeltaGrid narrow = grid;
      narrow.nx = kChunk;
      std::fill(edge.begin(), edge.end(), 0.0);
      for (int v = 0; v < grid.ky; ++v)
        std::memcpy(edge.data() + v * narrow.stride(), padded + (y + v) * grid.stride() + x,
                    (columns + grid.kx - 1) * sizeof(double));
      apply_chunk<LANES>(narrow, edge.data(), taps.data(), X, result);
      std::memcpy(out + y * grid.nx + x, result, columns * sizeof(double));
    }
  }
}

SKYLOOM_DISPATCH_LANES(void, apply_rows,
                 (const DeltaGrid& grid, const double* padded, const double* coefficients, std::int64_t start,
                  std::int64_t stop, double* out),
                 (grid, padded, coefficients, start, stop, out))

// sums[t] += sum over x of weights[x] R[x + t], for TAPS neighbouring taps
template <int LANES, int TAPS>
SKYLOOM_INLINE void correlate(const double* weights, const double* image, std::int64_t nx, double* sums) {
  using Vec = typename Doubles<LANES>::Vec;
  constexpr int kCount = Doubles<LANES>::kCount;
  Vec partial[TAPS] = {};
  std::int64_t x = 0;
  for (; x + kCount <= nx; x += kCount) {
    Vec factor;
    std::memcpy(&factor, weights + x, sizeof factor);
    for (int t = 0; t < TAPS; ++t) {
      Vec pixels;
      std::memcpy(&pixels, image + x + t, sizeof pixels);
      partial[t] += factor * pixels;
    }
  }
  for (int t = 0; t < TAPS; ++t) {
    const Vec total = partial[t];
    double value = 0.0;
    for (int lane = 0; lane < kCount; ++lane) value += total[lane];
    for (std::int64_t rest = x; rest < nx; ++rest) value += weights[rest] * image[rest + t];
    sums[t] += value;
  }
}

template <int LANES>
SKYLOOM_INLINE void project_rows_body(const DeltaGrid& grid, const double* padded, const double* image,
                                      std::int64_t start, std::int64_t stop, double* out) {
  constexpr int kTaps = 7;
  const int n = grid.taps();
  std::vector<double> weights(grid.nx), sums(n);
  for (std::int64_t y = start; y < stop; ++y) {
    const double* row = image + y * grid.nx;
    if (std::all_of(row, row + grid.nx, [](double value) { return value == 0.0; })) continue;
    std::copy(row, row + grid.nx, weights.begin());
    const double Y = (y - grid.y_centre) / grid.y_scale;
    double* to = out;
    for (int i = 0; i <= grid.order; ++i) {
      if (i > 0)
        for (std::int64_t x = 0; x < grid.nx; ++x) weights[x] *= (x - grid.x_centre) / grid.x_scale;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int v = 0; v < grid.ky; ++v) {
        const double* from = padded + (y + v) * grid.stride();
        int u = 0;
        for (; u + kTaps <= grid.kx; u += kTaps)
          correlate<LANES, kTaps>(weights.data(), from + u, grid.nx, sums.data() + v * grid.kx + u);
        for (; u < grid.kx; ++u) correlate<LANES, 1>(weights.data(), from + u, grid.nx, sums.data() + v * grid.kx + u);
      }
      double power = 1.0;
      for (int j = 0; j <= grid.order - i; ++j, to += n, power *= Y)
        for (int tap = 0; tap < n; ++tap) to[tap] += power * sums[tap];
    }
  }
}

SKYLOOM_DISPATCH_LANES(void, project_rows,
                 (const DeltaGrid& grid, const double* padded, const double* image, std::int64_t start,
                  std::int64_t stop, double* out),
                 (grid, padded, image, start, stop, out))

}  // namespace

void delta_apply(const DeltaGrid& grid, const double* padded, const double* coefficients, std::int64_t start,
                 std::int64_t stop, double* out) {
  apply_rows(grid, padded, coefficients, start, stop, out);
}

void delta_project(const DeltaGrid& grid, const double* padded, const double* image, std::int64_t start,
                   std::int64_t stop, double* out) {
  project_rows(grid, padded, image, start, stop, out);
}

}  // namespace skyloom

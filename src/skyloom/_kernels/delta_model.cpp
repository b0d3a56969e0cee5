#include <algorithm>
#include <cstring>
#include <vector>

#include "delta.hpp"
#include "isa.hpp"

namespace skyloom {
namespace {

constexpr int kChunk = 32;  // columns that are worked on at once

// A register of an instruction set that holds LANES floats, filled with T.
template <int LANES, class T>
struct Register {
  typedef T Vec __attribute__((vector_size(LANES * sizeof(float))));
  static constexpr int kCount = LANES * sizeof(float) / sizeof(T);
};

// to[lane] = level[lane] + sum_i X^i sum over taps of taps[i][tap] R[row + v][column + u + lane]
template <int LANES, class T>
SKYLOOM_INLINE void apply_chunk(const DeltaGrid& grid, const T* image, const T* taps, const T* level, const T* X, T* to) {
  using Vec = typename Register<LANES, T>::Vec;
  constexpr int kCount = Register<LANES, T>::kCount, kParts = kChunk / kCount;
  const int n = grid.taps();
  Vec value[kParts] = {};
  for (int i = grid.order; i >= 0; --i) {
    Vec sums[kParts] = {};
    for (int v = 0; v < grid.ky; ++v)
      for (int u = 0; u < grid.kx; ++u) {
        const T tap = taps[i * n + v * grid.kx + u];
        const T* from = image + v * grid.stride() + u;
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
    Vec base;
    std::memcpy(&base, level + p * kCount, sizeof base);
    const Vec result = value[p] + base;
    std::memcpy(to + p * kCount, &result, sizeof result);
  }
}

// to[i] = sum_j Y^j from[ij], each of n numbers
SKYLOOM_INLINE void collapse_y(const double* from, int order, int n, double Y, double* to) {
  for (int i = 0; i <= order; ++i, to += n) {
    std::fill(to, to + n, 0.0);
    double power = 1.0;
    for (int j = 0; j <= order - i; ++j, from += n, power *= Y)
      for (int k = 0; k < n; ++k) to[k] += power * from[k];
  }
}

template <int LANES, class T>
SKYLOOM_INLINE void apply_all(const DeltaGrid& grid, const T* padded, const double* coefficients, int flat_order,
                              const double* flat, std::int64_t start, std::int64_t stop, T* out) {
  const int n = grid.taps();
  std::vector<double> exact((grid.order + 1) * n), level(flat_order + 1);
  std::vector<T> taps(exact.size()), edge(grid.ky * (kChunk + grid.kx - 1));
  for (std::int64_t y = start; y < stop; ++y) {
    const double Y = (y - grid.y_centre) / grid.y_scale;
    collapse_y(coefficients, grid.order, n, Y, exact.data());
    std::copy(exact.begin(), exact.end(), taps.begin());
    collapse_y(flat, flat_order, 1, Y, level.data());
    for (std::int64_t x = 0; x < grid.nx; x += kChunk) {
      T X[kChunk], base[kChunk], result[kChunk];
      for (int lane = 0; lane < kChunk; ++lane) X[lane] = static_cast<T>((x + lane - grid.x_centre) / grid.x_scale);
      for (int lane = 0; lane < kChunk; ++lane) base[lane] = static_cast<T>(level[flat_order]);
      for (int i = flat_order - 1; i >= 0; --i)
        for (int lane = 0; lane < kChunk; ++lane) base[lane] = base[lane] * X[lane] + static_cast<T>(level[i]);
      const std::int64_t columns = std::min<std::int64_t>(kChunk, grid.nx - x);
      if (columns == kChunk) {
        apply_chunk<LANES, T>(grid, padded + y * grid.stride() + x, taps.data(), base, X, out + y * grid.nx + x);
        continue;
      }
      // the last columns: a copy with room for whole chunks
      DeltaGrid narrow = grid;
      narrow.nx = kChunk;
      std::fill(edge.begin(), edge.end(), 0.0);
      for (int v = 0; v < grid.ky; ++v)
        std::memcpy(edge.data() + v * narrow.stride(), padded + (y + v) * grid.stride() + x,
                    (columns + grid.kx - 1) * sizeof(T));
      apply_chunk<LANES, T>(narrow, edge.data(), taps.data(), base, X, result);
      std::memcpy(out + y * grid.nx + x, result, columns * sizeof(T));
    }
  }
}

template <int LANES>
SKYLOOM_INLINE void apply_single_body(const DeltaGrid& grid, const float* padded, const double* coefficients,
                                      int flat_order, const double* flat, std::int64_t start, std::int64_t stop,
                                      float* out) {
  apply_all<LANES, float>(grid, padded, coefficients, flat_order, flat, start, stop, out);
}

template <int LANES>
SKYLOOM_INLINE void apply_double_body(const DeltaGrid& grid, const double* padded, const double* coefficients,
                                      int flat_order, const double* flat, std::int64_t start, std::int64_t stop,
                                      double* out) {
  apply_all<LANES, double>(grid, padded, coefficients, flat_order, flat, start, stop, out);
}

SKYLOOM_DISPATCH_LANES(void, apply_single,
                       (const DeltaGrid& grid, const float* padded, const double* coefficients, int flat_order,
                        const double* flat, std::int64_t start, std::int64_t stop, float* out),
                       (grid, padded, coefficients, flat_order, flat, start, stop, out))
SKYLOOM_DISPATCH_LANES(void, apply_double,
                       (const DeltaGrid& grid, const double* padded, const double* coefficients, int flat_order,
                        const double* flat, std::int64_t start, std::int64_t stop, double* out),
                       (grid, padded, coefficients, flat_order, flat, start, stop, out))

// sums[t] += sum over x of weights[x] R[x + t], for TAPS neighbouring taps
template <int LANES, int TAPS, class T>
SKYLOOM_INLINE void correlate(const T* weights, const T* image, std::int64_t nx, double* sums) {
  using Vec = typename Register<LANES, T>::Vec;
  constexpr int kCount = Register<LANES, T>::kCount;
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
    for (std::int64_t rest = x; rest < nx; ++rest) value += static_cast<double>(weights[rest]) * image[rest + t];
    sums[t] += value;
  }
}

// to[ij] += Y^j sums, each of n numbers, for one i
SKYLOOM_INLINE double* spread_y(const double* sums, int count, int n, double Y, double* to) {
  double power = 1.0;
  for (int j = 0; j < count; ++j, to += n, power *= Y)
    for (int k = 0; k < n; ++k) to[k] += power * sums[k];
  return to;
}

template <int LANES, class T>
SKYLOOM_INLINE double project_all(const DeltaGrid& grid, const T* padded, const T* image, const float* weight,
                                  std::int64_t start, std::int64_t stop, int flat_order, double* out, double* flat) {
  constexpr int kTaps = 7;
  const int n = grid.taps();
  std::vector<T> weighted(grid.nx), X(grid.nx), ones(grid.nx, T(1));
  std::vector<double> sums(n);
  for (std::int64_t x = 0; x < grid.nx; ++x) X[x] = static_cast<T>((x - grid.x_centre) / grid.x_scale);
  double squares = 0.0;
  for (std::int64_t y = start; y < stop; ++y) {
    const T* row = image + y * grid.nx;
    bool any = false;
    for (std::int64_t x = 0; x < grid.nx; ++x) {
      weighted[x] = static_cast<T>(weight[y * grid.nx + x]) * row[x];
      any |= weighted[x] != T(0);
    }
    if (!any) continue;
    correlate<LANES, 1, T>(weighted.data(), row, grid.nx, &squares);
    const double Y = (y - grid.y_centre) / grid.y_scale;
    double *to = out, *to_flat = flat;
    for (int i = 0; i <= std::max(grid.order, flat_order); ++i) {
      if (i > 0)
        for (std::int64_t x = 0; x < grid.nx; ++x) weighted[x] *= X[x];
      if (i <= flat_order) {
        double total = 0.0;
        correlate<LANES, 1, T>(weighted.data(), ones.data(), grid.nx, &total);
        to_flat = spread_y(&total, flat_order - i + 1, 1, Y, to_flat);
      }
      if (i > grid.order) continue;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int v = 0; v < grid.ky; ++v) {
        const T* from = padded + (y + v) * grid.stride();
        int u = 0;
        for (; u + kTaps <= grid.kx; u += kTaps)
          correlate<LANES, kTaps, T>(weighted.data(), from + u, grid.nx, sums.data() + v * grid.kx + u);
        for (; u < grid.kx; ++u) correlate<LANES, 1, T>(weighted.data(), from + u, grid.nx, sums.data() + v * grid.kx + u);
      }
      to = spread_y(sums.data(), grid.order - i + 1, n, Y, to);
    }
  }
  return squares;
}

template <int LANES>
SKYLOOM_INLINE double project_single_body(const DeltaGrid& grid, const float* padded, const float* image,
                                          const float* weight, std::int64_t start, std::int64_t stop, int flat_order,
                                          double* out, double* flat) {
  return project_all<LANES, float>(grid, padded, image, weight, start, stop, flat_order, out, flat);
}

template <int LANES>
SKYLOOM_INLINE double project_double_body(const DeltaGrid& grid, const double* padded, const double* image,
                                          const float* weight, std::int64_t start, std::int64_t stop, int flat_order,
                                          double* out, double* flat) {
  return project_all<LANES, double>(grid, padded, image, weight, start, stop, flat_order, out, flat);
}

SKYLOOM_DISPATCH_LANES(double, project_single,
                       (const DeltaGrid& grid, const float* padded, const float* image, const float* weight,
                        std::int64_t start, std::int64_t stop, int flat_order, double* out, double* flat),
                       (grid, padded, image, weight, start, stop, flat_order, out, flat))
SKYLOOM_DISPATCH_LANES(double, project_double,
                       (const DeltaGrid& grid, const double* padded, const double* image, const float* weight,
                        std::int64_t start, std::int64_t stop, int flat_order, double* out, double* flat),
                       (grid, padded, image, weight, start, stop, flat_order, out, flat))

}  // namespace

template <>
void delta_apply<float>(const DeltaGrid& grid, const float* padded, const double* coefficients, int flat_order,
                        const double* flat, std::int64_t start, std::int64_t stop, float* out) {
  apply_single(grid, padded, coefficients, flat_order, flat, start, stop, out);
}

template <>
void delta_apply<double>(const DeltaGrid& grid, const double* padded, const double* coefficients, int flat_order,
                         const double* flat, std::int64_t start, std::int64_t stop, double* out) {
  apply_double(grid, padded, coefficients, flat_order, flat, start, stop, out);
}

template <>
double delta_project<float>(const DeltaGrid& grid, const float* padded, const float* image, const float* weight,
                            std::int64_t start, std::int64_t stop, int flat_order, double* out, double* flat) {
  return project_single(grid, padded, image, weight, start, stop, flat_order, out, flat);
}

template <>
double delta_project<double>(const DeltaGrid& grid, const double* padded, const double* image, const float* weight,
                             std::int64_t start, std::int64_t stop, int flat_order, double* out, double* flat) {
  return project_double(grid, padded, image, weight, start, stop, flat_order, out, flat);
}

}  // namespace skyloom

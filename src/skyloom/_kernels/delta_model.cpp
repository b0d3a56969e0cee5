#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "delta.hpp"
#include "isa.hpp"

namespace skyloom {
namespace {

constexpr int kChunk = 64;  // columns that are worked on at once

// Keeps a value that is used more than once in its register: compilers would load it again for each use, and a load that
// does not start at a cache line, as that of a shifted row, costs two.
#if defined(__x86_64__)
#define SKYLOOM_KEEP(value) asm("" : "+v"(value))
#elif defined(__aarch64__)
#define SKYLOOM_KEEP(value) asm("" : "+w"(value))
#else
#define SKYLOOM_KEEP(value)
#endif

// A register of an instruction set that holds LANES floats, filled with T.
template <int LANES, class T>
struct Register {
  typedef T Vec __attribute__((vector_size(LANES * sizeof(float))));
  static constexpr int kCount = LANES * sizeof(float) / sizeof(T);
};

// value = value X^TERMS + sum over t < TERMS of X^(TERMS - 1 - t) sum over taps of taps[-t n] R[row + v][column + u + lane]: Horner's
// rule for neighbouring powers of X, whose sums share the pixels that they load. PARTS registers of columns.
template <int LANES, int TERMS, int PARTS, class T>
SKYLOOM_INLINE void add_terms(const DeltaGrid& grid, const T* image, const T* taps, const T* X,
                              typename Register<LANES, T>::Vec* value) {
  using Vec = typename Register<LANES, T>::Vec;
  constexpr int kCount = Register<LANES, T>::kCount;
  const int n = grid.taps();
  Vec sums[TERMS][PARTS] = {};
  for (int v = 0; v < grid.ky; ++v)
    for (int u = 0; u < grid.kx; ++u) {
      const T* tap = taps + v * grid.kx + u;
      const T* from = image + v * grid.stride() + u;
      Vec pixels[PARTS];
      for (int p = 0; p < PARTS; ++p) {
        std::memcpy(&pixels[p], from + p * kCount, sizeof(Vec));
        SKYLOOM_KEEP(pixels[p]);
      }
      for (int t = 0; t < TERMS; ++t)
        for (int p = 0; p < PARTS; ++p) sums[t][p] += tap[-t * n] * pixels[p];
    }
  for (int p = 0; p < PARTS; ++p) {
    Vec x;
    std::memcpy(&x, X + p * kCount, sizeof x);
    for (int t = 0; t < TERMS; ++t) value[p] = value[p] * x + sums[t][p];
  }
}

// to[lane] = level[lane] + sum_i X^i sum over taps of taps[i][tap] R[row + v][column + u + lane]
template <int LANES, class T>
SKYLOOM_INLINE void apply_chunk(const DeltaGrid& grid, const T* image, const T* taps, const T* level, const T* X, T* to) {
  using Vec = typename Register<LANES, T>::Vec;
  constexpr int kCount = Register<LANES, T>::kCount;
  constexpr int kParts = std::min(LANES == 16 ? 4 : 2, kChunk / kCount);  // three terms of them fit the registers
  const int n = grid.taps();
  for (int column = 0; column < kChunk; column += kParts * kCount) {
    Vec value[kParts] = {};
    int i = grid.order;
    for (; i >= 2; i -= 3) add_terms<LANES, 3, kParts, T>(grid, image + column, taps + i * n, X + column, value);
    if (i == 1) add_terms<LANES, 2, kParts, T>(grid, image + column, taps + n, X + column, value);
    if (i == 0) add_terms<LANES, 1, kParts, T>(grid, image + column, taps, X + column, value);
    for (int p = 0; p < kParts; ++p) {
      Vec base;
      std::memcpy(&base, level + column + p * kCount, sizeof base);
      const Vec result = value[p] + base;
      std::memcpy(to + column + p * kCount, &result, sizeof result);
    }
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

// Sum over x of a[x] b[x].
template <int LANES, class T>
SKYLOOM_INLINE double dot(const T* a, const T* b, std::int64_t nx) {
  using Vec = typename Register<LANES, T>::Vec;
  constexpr int kCount = Register<LANES, T>::kCount;
  Vec partial = {};
  std::int64_t x = 0;
  for (; x + kCount <= nx; x += kCount) {
    Vec left, right;
    std::memcpy(&left, a + x, sizeof left);
    std::memcpy(&right, b + x, sizeof right);
    partial += left * right;
  }
  double total = 0.0;
  for (int lane = 0; lane < kCount; ++lane) total += partial[lane];
  for (; x < nx; ++x) total += static_cast<double>(a[x]) * b[x];
  return total;
}

// sums[j n + t] += Y^j sum over x of weights[k nx + x] R[x + t] for j < count - k, for ROWS rows k of weights and TAPS
// neighbouring taps, each a register of partial sums; those of row k + 1 follow those of row k. Y holds the powers.
template <int LANES, int ROWS, int TAPS, class T>
SKYLOOM_INLINE void correlate(const T* weights, const T* image, std::int64_t nx, int n, int count, const T* Y,
                              T* sums) {
  using Vec = typename Register<LANES, T>::Vec;
  constexpr int kCount = Register<LANES, T>::kCount;
  Vec partial[ROWS][TAPS] = {};
  std::int64_t x = 0;
  for (; x + kCount <= nx; x += kCount) {
    Vec factors[ROWS];
    for (int k = 0; k < ROWS; ++k) std::memcpy(&factors[k], weights + k * nx + x, sizeof(Vec));
    for (int t = 0; t < TAPS; ++t) {
      Vec pixels;
      std::memcpy(&pixels, image + x + t, sizeof pixels);
      SKYLOOM_KEEP(pixels);
      for (int k = 0; k < ROWS; ++k) partial[k][t] += factors[k] * pixels;
    }
  }
  for (; x < nx; ++x)
    for (int k = 0; k < ROWS; ++k)
      for (int t = 0; t < TAPS; ++t) partial[k][t][0] += weights[k * nx + x] * image[x + t];
  for (int k = 0; k < ROWS; ++k)
    for (int j = 0; j < count - k; ++j, sums += n * kCount)
      for (int t = 0; t < TAPS; ++t) {
        Vec sum;
        std::memcpy(&sum, sums + t * kCount, sizeof sum);
        sum += Y[j] * partial[k][t];
        std::memcpy(sums + t * kCount, &sum, sizeof sum);
      }
}

// The same for all taps of a kernel.
template <int LANES, int ROWS, class T>
SKYLOOM_INLINE void correlate_taps(const DeltaGrid& grid, const T* weights, const T* image, int count, const T* Y,
                                   T* sums) {
  constexpr int kMost = LANES == 16 ? 7 : 4;  // accumulators for three rows in the 32 (or 16) registers that there are
  constexpr int kCount = Register<LANES, T>::kCount;
  const int n = grid.taps();
  for (int v = 0; v < grid.ky; ++v, image += grid.stride(), sums += grid.kx * kCount) {
    int u = 0;
    for (; u + kMost <= grid.kx; u += kMost)
      correlate<LANES, ROWS, kMost, T>(weights, image + u, grid.nx, n, count, Y, sums + u * kCount);
    for (; u + 3 <= grid.kx; u += 3) correlate<LANES, ROWS, 3, T>(weights, image + u, grid.nx, n, count, Y, sums + u * kCount);
    for (; u < grid.kx; ++u) correlate<LANES, ROWS, 1, T>(weights, image + u, grid.nx, n, count, Y, sums + u * kCount);
  }
}

template <int LANES, class T>
SKYLOOM_INLINE double project_all(const DeltaGrid& grid, const T* padded, const T* image, const float* weight,
                                  std::int64_t start, std::int64_t stop, int flat_order, double* out, double* flat) {
  const int n = grid.taps(), powers = std::max(grid.order, flat_order) + 1;
  std::vector<T> weighted(powers * grid.nx), X(grid.nx), ones(grid.nx, T(1));  // weight, image and X^i, [i][x]
  std::vector<T> Y(powers, T(1));
  constexpr int kCount = Register<LANES, T>::kCount;
  const std::int64_t size = static_cast<std::int64_t>(grid.terms()) * n;
  std::vector<T> memory((size + 1) * kCount);
  void* aligned = memory.data();
  std::size_t room = memory.size() * sizeof(T);
  T* const sums = static_cast<T*>(std::align(kCount * sizeof(T), size * kCount * sizeof(T), aligned, room));
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
    squares += dot<LANES, T>(weighted.data(), row, grid.nx);
    for (int i = 1; i < powers; ++i) {
      const T* before = weighted.data() + (i - 1) * grid.nx;
      T* with = weighted.data() + i * grid.nx;
      for (std::int64_t x = 0; x < grid.nx; ++x) with[x] = before[x] * X[x];
    }
    const double exact = (y - grid.y_centre) / grid.y_scale;
    double* to_flat = flat;
    for (int i = 0; i <= flat_order; ++i) {
      double total = dot<LANES, T>(weighted.data() + i * grid.nx, ones.data(), grid.nx);
      for (int j = 0; j <= flat_order - i; ++j, total *= exact) *to_flat++ += total;
    }
    double power = exact;
    for (int j = 1; j < powers; ++j, power *= exact) Y[j] = static_cast<T>(power);
    const T* from = padded + y * grid.stride();
    T* to = sums;
    for (int i = 0; i <= grid.order;) {
      const int count = grid.order - i + 1;
      const T* with = weighted.data() + i * grid.nx;
      const int rows = std::min(count, 3);
      if (rows == 3) correlate_taps<LANES, 3, T>(grid, with, from, count, Y.data(), to);
      if (rows == 2) correlate_taps<LANES, 2, T>(grid, with, from, count, Y.data(), to);
      if (rows == 1) correlate_taps<LANES, 1, T>(grid, with, from, count, Y.data(), to);
      for (int k = 0; k < rows; ++k) to += (count - k) * n * kCount;
      i += rows;
    }
  }
  for (std::int64_t k = 0; k < size; ++k)
    for (int lane = 0; lane < kCount; ++lane) out[k] += sums[k * kCount + lane];
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

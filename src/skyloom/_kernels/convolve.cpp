#include "convolve.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

// For short loops over registers: left as loops they would keep them in memory.
#if defined(__GNUC__) && !defined(__clang__)
#define SKYLOOM_UNROLL _Pragma("GCC unroll 8")
#else
#define SKYLOOM_UNROLL
#endif

constexpr int kChunk = kConvolveChunk;
constexpr int kBlock = 2 * kChunk;  // the kernel is expanded about the middle of so many columns
constexpr int kGroup = 4;           // rows that are worked on together

template <int LANES>
struct Register {
  typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
};

// How many rows of output are summed at a time, for N polynomial terms and PARTS registers of columns: as many sums as
// hide the latency of a multiply-add, and no more than there are registers (32 of 16 lanes, else 16).
template <int LANES, int N>
constexpr int rows_at_a_time() {
  if (LANES == 16) return N <= 3 ? 4 : 2;
  if (LANES == 8) return N == 1 ? 4 : N <= 3 ? 2 : 1;
  return N == 1 ? 2 : 1;
}
static_assert(kGroup % 4 == 0);

// The kernel around the middle of one block. Along x it is a polynomial in t = X - X(middle),
// K = sum_k t^k taylor[k]: exact, so there is no step anywhere. K^2 is taken to first order in t: at the ends of a
// block it is off by (16 px / x_scale)^2 of the curvature of K^2 over the field. See `expand_line` for less.
struct Taps {
  int count;                    // ky * kx
  std::vector<double> sum;      // [count]
  std::vector<float> by_row;    // [order + 1][count]: sum_j Y^j planes[ij]
  std::vector<float> taylor;    // [order + 1][count]
  std::vector<float> squared;   // [2][those within the margin]: K^2 and its derivative by t
  std::vector<float> absolute;  // [order + 1][count]: |K|, where no tap changes its sign within the block

  Taps(int n, int order)
      : count(n), sum(n), by_row(n * (order + 1)), taylor(n * (order + 1)), squared(2 * n), absolute(n * (order + 1)) {}
};

template <int ORDER>
SKYLOOM_INLINE void collapse_y(const VaryingKernel& kernel, double y, Taps& taps) {
  const double Y = (y - kernel.y_centre) / kernel.y_scale;
  const double* plane = kernel.planes;
  for (int i = 0; i <= ORDER; ++i) {
    float* __restrict row = taps.by_row.data() + i * taps.count;
    double* __restrict sum = taps.sum.data();
    double power = 1.0;
    for (int j = 0; j <= ORDER - i; ++j, plane += taps.count, power *= Y)
      for (int tap = 0; tap < taps.count; ++tap) sum[tap] = (j == 0 ? 0.0 : sum[tap]) + power * plane[tap];
    for (int tap = 0; tap < taps.count; ++tap) row[tap] = static_cast<float>(sum[tap]);
  }
}

// taylor[K] = sum_{i >= K} binomial(i, K) X^(i - K) by_row[i], for K and all above it.
template <int ORDER, int K>
SKYLOOM_INLINE void expand_terms(double X, int n, const float* __restrict by_row, float* __restrict taylor) {
  float factor[ORDER + 1 - K];
  double power = 1.0, binomial = 1.0;
  for (int i = K; i <= ORDER; ++i) {
    factor[i - K] = static_cast<float>(power * binomial);
    power *= X;
    binomial = binomial * (i + 1) / (i + 1 - K);
  }
  for (int tap = 0; tap < n; ++tap) {
    float value = factor[0] * by_row[K * n + tap];
    SKYLOOM_UNROLL
    for (int i = K + 1; i <= ORDER; ++i) value += factor[i - K] * by_row[i * n + tap];
    taylor[K * n + tap] = value;
  }
  if constexpr (K < ORDER) expand_terms<ORDER, K + 1>(X, n, by_row, taylor);
}

SKYLOOM_INLINE void multiply(int n, float factor, const float* a, const float* b, float* __restrict to) {
  for (int tap = 0; tap < n; ++tap) to[tap] = factor * a[tap] * b[tap];
}

// K^2 and, unless it is to be constant, its derivative by t, within the margin.
SKYLOOM_INLINE void square(const VaryingKernel& kernel, bool constant, Taps& taps) {
  const int margin = kernel.square_margin, width = kernel.kx - 2 * margin, height = kernel.ky - 2 * margin;
  for (int v = 0; v < height; ++v) {
    const float* k0 = taps.taylor.data() + (v + margin) * kernel.kx + margin;
    float* to = taps.squared.data() + v * width;
    multiply(width, 1.0f, k0, k0, to);
    if (!constant) multiply(width, 2.0f, k0, k0 + taps.count, to + width * height);
  }
}

// Taylor coefficients about X of K, and of K^2 to first order.
template <int ORDER>
SKYLOOM_INLINE void expand_x(const VaryingKernel& kernel, double X, Taps& taps) {
  expand_terms<ORDER, 0>(X, taps.count, taps.by_row.data(), taps.taylor.data());
  square(kernel, ORDER == 0, taps);
}

// to[tap] = sum_i factor[i] by_row[i][tap]
template <int ORDER>
SKYLOOM_INLINE void combine_rows(int n, const float* __restrict by_row, const float* factor, float* __restrict to) {
  float f[ORDER + 1];
  for (int i = 0; i <= ORDER; ++i) f[i] = factor[i];
  for (int tap = 0; tap < n; ++tap) {
    float value = f[0] * by_row[tap];
    SKYLOOM_UNROLL
    for (int i = 1; i <= ORDER; ++i) value += f[i] * by_row[i * n + tap];
    to[tap] = value;
  }
}

// K and K^2 around X as `expand_x` leaves them, but of K only the line that is nearest to it for |t| <= T: powers of t are
// Chebyshev polynomials, of which the first two are kept: t^2 = T^2 / 2 + .., t^3 = 3/4 T^2 t + .., t^4 = 3/8 T^4 + ...
template <int ORDER>
SKYLOOM_INLINE void expand_line(const VaryingKernel& kernel, double X, Taps& taps) {
  const double T = kBlock / 2 / kernel.x_scale;
  const double even[5] = {1.0, 0.0, T * T / 2, 0.0, 0.375 * T * T * T * T}, odd[5] = {0.0, 1.0, 0.0, 0.75 * T * T, 0.0};
  float level[ORDER + 1], slope[ORDER + 1];
  for (int i = 0; i <= ORDER; ++i) {
    double a = 0.0, b = 0.0, term = 1.0;  // binomial(i, k) X^(i - k), from k = i down
    for (int k = i; k >= 0; --k) {
      a += term * even[k];
      b += term * odd[k];
      term *= X * k / (i - k + 1);
    }
    level[i] = static_cast<float>(a);
    slope[i] = static_cast<float>(b);
  }
  const int n = taps.count;
  combine_rows<ORDER>(n, taps.by_row.data(), level, taps.taylor.data());
  combine_rows<ORDER>(n, taps.by_row.data(), slope, taps.taylor.data() + n);
  square(kernel, kernel.constant_square, taps);
}

// |K| around the middle of a block: that of K, with the signs that its taps have in the middle.
template <int ORDER>
SKYLOOM_INLINE void take_absolute(Taps& taps) {
  const int n = taps.count;
  const float* k0 = taps.taylor.data();
  float* __restrict absolute = taps.absolute.data();
  for (int k = 0; k <= ORDER; ++k)
    for (int tap = 0; tap < n; ++tap) absolute[k * n + tap] = std::copysign(1.0f, k0[tap]) * k0[k * n + tap];
}

// Adds one row of the image to COUNT rows of output: sums[r][k] += sum_u taps[r][k * n + u] * row[u + lane]. Each row of a
// kernel is summed on its own first, which keeps the rounding error at that of about ky + kx additions.
template <int LANES, int N, int COUNT, int PARTS>
SKYLOOM_INLINE void add_row(const float* row, const float* const* taps, int n, int kx,
                            typename Register<LANES>::Vec (*sums)[N][PARTS]) {
  using Vec = typename Register<LANES>::Vec;
  Vec partial[COUNT][N][PARTS] = {};
  const float* tap[COUNT][N];
  SKYLOOM_UNROLL
  for (int r = 0; r < COUNT; ++r)
    SKYLOOM_UNROLL
    for (int k = 0; k < N; ++k) tap[r][k] = taps[r] + k * n;
  for (int u = 0; u < kx; ++u) {
    Vec pixels[PARTS];
    SKYLOOM_UNROLL
    for (int p = 0; p < PARTS; ++p) std::memcpy(&pixels[p], row + u + p * LANES, sizeof(Vec));
    SKYLOOM_UNROLL
    for (int r = 0; r < COUNT; ++r)
      SKYLOOM_UNROLL
      for (int k = 0; k < N; ++k)
        SKYLOOM_UNROLL
        for (int p = 0; p < PARTS; ++p) partial[r][k][p] += tap[r][k][u] * pixels[p];
  }
  SKYLOOM_UNROLL
  for (int r = 0; r < COUNT; ++r)
    SKYLOOM_UNROLL
    for (int k = 0; k < N; ++k)
      SKYLOOM_UNROLL
      for (int p = 0; p < PARTS; ++p) sums[r][k][p] += partial[r][k][p];
}

template <int LANES, int N, int COUNT, int PARTS>
SKYLOOM_INLINE void add_row_to(int count, const float* row, const float* const* taps, int n, int kx,
                               typename Register<LANES>::Vec (*sums)[N][PARTS]) {
  if constexpr (COUNT > 1)
    if (count < COUNT) return add_row_to<LANES, N, COUNT - 1, PARTS>(count, row, taps, n, kx, sums);
  add_row<LANES, N, COUNT, PARTS>(row, taps, n, kx, sums);
}

// sums[r][k][lane] = sum over taps of taps[r][k][tap] * image[row r + v][column u + lane], for ROWS rows below one another,
// each with its own kernel. A row of the image is read once for all of them.
template <int LANES, int N, int ROWS, int PARTS>
SKYLOOM_INLINE void correlate(const float* image, std::int64_t stride, const float* const* taps, int ky, int kx,
                              typename Register<LANES>::Vec (&sums)[ROWS][N][PARTS]) {
  const int n = ky * kx;
  for (int r = 0; r < ROWS; ++r)
    for (int k = 0; k < N; ++k)
      for (int p = 0; p < PARTS; ++p) sums[r][k][p] = typename Register<LANES>::Vec{};
  for (int i = 0; i < ky + ROWS - 1; ++i) {
    const int first = std::max(0, i - ky + 1), last = std::min(ROWS - 1, i);
    const float* now[ROWS];
    for (int r = first; r <= last; ++r) now[r - first] = taps[r] + (i - r) * kx;
    add_row_to<LANES, N, ROWS, PARTS>(last - first + 1, image + i * stride, now, n, kx, sums + first);
  }
}

// to[lane] = sum_k t^k sums[k][lane]
template <int LANES, int N, int PARTS>
SKYLOOM_INLINE void polynomial(const typename Register<LANES>::Vec (&sums)[N][PARTS], const float* t, float* to) {
  for (int p = 0; p < PARTS; ++p) {
    typename Register<LANES>::Vec at, value = sums[N - 1][p];
    std::memcpy(&at, t + p * LANES, sizeof at);
    for (int k = N - 2; k >= 0; --k) value = value * at + sums[k][p];
    std::memcpy(to + p * LANES, &value, sizeof value);
  }
}

// The share of the kernel's weight, lane by lane, that usable pixels get: sum k u / sum k, for the kernel's polynomial `taps`.
template <int LANES, int ORDER>
SKYLOOM_INLINE void usable_share(const float* usable, std::int64_t stride, const float* taps, int ky, int kx,
                                 const float* t, float* share) {
  constexpr int kParts = kChunk / LANES;
  typename Register<LANES>::Vec sums[1][ORDER + 1][kParts];
  correlate<LANES, ORDER + 1, 1, kParts>(usable, stride, &taps, ky, kx, sums);
  polynomial<LANES, ORDER + 1, kParts>(sums[0], t, share);
  double total[ORDER + 1] = {};
  for (int k = 0; k <= ORDER; ++k)
    for (int tap = 0; tap < ky * kx; ++tap) total[k] += taps[k * ky * kx + tap];
  for (int lane = 0; lane < kChunk; ++lane) {
    double all = total[ORDER];
    for (int k = ORDER - 1; k >= 0; --k) all = all * t[lane] + total[k];
    share[lane] = all != 0.0 ? static_cast<float>(share[lane] / all) : 0.0f;
  }
}

template <int LANES, int ORDER>
SKYLOOM_INLINE void weigh_mask(const ConvolvePlanes& planes, const VaryingKernel& kernel, const Taps& taps,
                               const float* t, std::int64_t in, std::int64_t out) {
  const float* usable = planes.usable + in;
  float kept_abs[kChunk];
  usable_share<LANES, ORDER>(usable, planes.stride, taps.taylor.data(), kernel.ky, kernel.kx, t, planes.out_kept + out);
  usable_share<LANES, ORDER>(usable, planes.stride, taps.absolute.data(), kernel.ky, kernel.kx, t, kept_abs);
  for (int lane = 0; lane < kChunk; ++lane)
    planes.out_lost[out + lane] = kept_abs[lane] < 1.0f ? 1.0f - kept_abs[lane] : 0.0f;
}

// How many unusable pixels each column has in the kernel's rows around one output row.
class UnusableInReach {
 public:
  UnusableInReach(const ConvolvePlanes& planes, int ky, std::int64_t row) : planes_(planes), ky_(ky) {
    if (planes.usable == nullptr) return;
    columns_.assign(planes.stride, 0);
    for (int v = 0; v < ky; ++v) add(row + v, 1);
  }
  void step(std::int64_t row) {  // from `row` to the next one
    if (planes_.usable == nullptr) return;
    add(row, -1);
    add(row + ky_, 1);
  }
  bool any(std::int64_t column, int count) const {
    if (planes_.usable == nullptr) return false;
    for (int x = 0; x < count; ++x)
      if (columns_[column + x] != 0) return true;
    return false;
  }

 private:
  void add(std::int64_t row, int sign) {
    const float* usable = planes_.usable + row * planes_.stride;
    for (std::int64_t x = 0; x < planes_.stride; ++x) columns_[x] += usable[x] == 0.0f ? sign : 0;
  }
  const ConvolvePlanes& planes_;
  int ky_;
  std::vector<int> columns_;
};

// Convolves PARTS registers of columns in `count` rows with the polynomials of N terms whose taps start at taps[r].
template <int LANES, int N, int PARTS>
SKYLOOM_INLINE void convolve_columns(const float* image, std::int64_t stride, const float* const* taps, int ky, int kx,
                                     const float* t, float* out, std::int64_t width, int count) {
  constexpr int kRows = rows_at_a_time<LANES, N>();
  int r = 0;
  for (; r + kRows <= count; r += kRows) {
    typename Register<LANES>::Vec sums[kRows][N][PARTS];
    correlate<LANES, N, kRows, PARTS>(image + r * stride, stride, taps + r, ky, kx, sums);
    for (int k = 0; k < kRows; ++k) polynomial<LANES, N, PARTS>(sums[k], t, out + (r + k) * width);
  }
  for (; r < count; ++r) {
    typename Register<LANES>::Vec sums[1][N][PARTS];
    correlate<LANES, N, 1, PARTS>(image + r * stride, stride, taps + r, ky, kx, sums);
    polynomial<LANES, N, PARTS>(sums[0], t, out + r * width);
  }
}

// The same for all columns of a block.
template <int LANES, int N>
SKYLOOM_INLINE void convolve_block(const float* image, std::int64_t stride, const float* const* taps, int ky, int kx,
                                   const float* t, float* out, std::int64_t width, int count, int columns) {
  constexpr int kWide = LANES == 16 ? 2 : kChunk / LANES;
  int x = 0;
  for (; x + kWide * LANES <= columns; x += kWide * LANES)
    convolve_columns<LANES, N, kWide>(image + x, stride, taps, ky, kx, t + x, out + x, width, count);
  if constexpr (kWide * LANES > kChunk)
    for (; x < columns; x += kChunk)
      convolve_columns<LANES, N, kChunk / LANES>(image + x, stride, taps, ky, kx, t + x, out + x, width, count);
}

// The shares of the kernel's weight on usable pixels, for one row of a block.
template <int LANES, int ORDER>
SKYLOOM_INLINE void weigh_block(const ConvolvePlanes& planes, const VaryingKernel& kernel, Taps& taps,
                                const UnusableInReach& unusable, const float* t, std::int64_t y, std::int64_t x,
                                int columns) {
  for (int c = 0; c < columns; c += kChunk) {
    const std::int64_t out = y * planes.width + x + c;
    if (unusable.any(x + c, kChunk + kernel.kx - 1)) {
      take_absolute<ORDER>(taps);
      weigh_mask<LANES, ORDER>(planes, kernel, taps, t + c, y * planes.stride + x + c, out);
    } else {
      for (int lane = 0; lane < kChunk; ++lane) {
        planes.out_lost[out + lane] = 0.0f;
        planes.out_kept[out + lane] = 1.0f;
      }
    }
  }
}

template <int LANES, int ORDER>
SKYLOOM_INLINE void convolve_rows(const VaryingKernel& kernel, const ConvolvePlanes& planes, std::int64_t row_start,
                                  std::int64_t row_stop) {
  const int ky = kernel.ky, kx = kernel.kx;
  std::vector<Taps> taps(kGroup, Taps(ky * kx, ORDER));
  std::vector<UnusableInReach> unusable;
  const float *taylor[kGroup], *squared[kGroup];
  for (int r = 0; r < kGroup; ++r) {
    taylor[r] = taps[r].taylor.data();
    squared[r] = taps[r].squared.data();
    if (row_start + r < row_stop) unusable.emplace_back(planes, ky, row_start + r);
    if constexpr (ORDER == 0) {
      collapse_y<0>(kernel, 0.0, taps[r]);
      expand_x<0>(kernel, 0.0, taps[r]);
    }
  }
  for (std::int64_t y = row_start; y < row_stop; y += kGroup) {
    const int count = static_cast<int>(std::min<std::int64_t>(kGroup, row_stop - y));
    if constexpr (ORDER > 0)
      for (int r = 0; r < count; ++r) collapse_y<ORDER>(kernel, static_cast<double>(y + r), taps[r]);
    for (std::int64_t x = 0; x < planes.width; x += kBlock) {
      const int columns = static_cast<int>(std::min<std::int64_t>(kBlock, planes.width - x));
      float t[kBlock] = {};
      if constexpr (ORDER > 0) {
        const double middle = 0.5 * (x + std::min(x + kBlock, planes.columns) - 1);
        const double X = (middle - kernel.x_centre) / kernel.x_scale;
        for (int r = 0; r < count; ++r) {
          if (ORDER > 1 && kernel.linear)
            expand_line<ORDER>(kernel, X, taps[r]);
          else
            expand_x<ORDER>(kernel, X, taps[r]);
        }
        for (int lane = 0; lane < kBlock; ++lane) t[lane] = static_cast<float>((x + lane - middle) / kernel.x_scale);
      }
      const std::int64_t in = y * planes.stride + x, out = y * planes.width + x;
      if (ORDER > 1 && kernel.linear)
        convolve_block<LANES, 2>(planes.data + in, planes.stride, taylor, ky, kx, t, planes.out + out, planes.width,
                                 count, columns);
      else
        convolve_block<LANES, ORDER + 1>(planes.data + in, planes.stride, taylor, ky, kx, t, planes.out + out,
                                         planes.width, count, columns);
      if (planes.variance != nullptr) {
        const int margin = kernel.square_margin, rows = ky - 2 * margin, wide = kx - 2 * margin;
        const float* from = planes.variance + in + margin * (planes.stride + 1);
        float* to = planes.out_variance + out;
        if (ORDER == 0 || kernel.constant_square)
          convolve_block<LANES, 1>(from, planes.stride, squared, rows, wide, t, to, planes.width, count, columns);
        else
          convolve_block<LANES, 2>(from, planes.stride, squared, rows, wide, t, to, planes.width, count, columns);
      }
      if (planes.usable != nullptr)
        for (int r = 0; r < count; ++r) {
          if (ORDER > 1 && kernel.linear)
            weigh_block<LANES, 1>(planes, kernel, taps[r], unusable[r], t, y + r, x, columns);
          else
            weigh_block<LANES, ORDER>(planes, kernel, taps[r], unusable[r], t, y + r, x, columns);
        }
    }
    for (int r = 0; r < count; ++r)
      for (int step = 0; step < kGroup && y + r + kGroup < row_stop; ++step) unusable[r].step(y + r + step);
  }
}

template <int LANES>
SKYLOOM_INLINE void convolve_body(const VaryingKernel& kernel, const ConvolvePlanes& planes, std::int64_t row_start,
                                   std::int64_t row_stop) {
  static_assert(kConvolveMaxOrder == 4);
  switch (kernel.order) {
    case 0: return convolve_rows<LANES, 0>(kernel, planes, row_start, row_stop);
    case 1: return convolve_rows<LANES, 1>(kernel, planes, row_start, row_stop);
    case 2: return convolve_rows<LANES, 2>(kernel, planes, row_start, row_stop);
    case 3: return convolve_rows<LANES, 3>(kernel, planes, row_start, row_stop);
    default: return convolve_rows<LANES, 4>(kernel, planes, row_start, row_stop);
  }
}

SKYLOOM_DISPATCH_LANES(void, convolve,
                 (const VaryingKernel& kernel, const ConvolvePlanes& planes, std::int64_t row_start, std::int64_t row_stop),
                 (kernel, planes, row_start, row_stop))

}  // namespace

void convolve_varying(const VaryingKernel& kernel, const ConvolvePlanes& planes, std::int64_t row_start,
                      std::int64_t row_stop) {
  convolve(kernel, planes, row_start, row_stop);
}

}  // namespace skyloom

#include "convolve.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

constexpr int kChunk = kConvolveChunk;
constexpr int kBlock = 2 * kChunk;  // the kernel is expanded about the middle of so many columns

// One chunk as registers of LANES floats.
template <int LANES>
struct Chunk {
  typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
  static constexpr int kParts = kChunk / LANES;
  Vec part[kParts];
};

// The kernel around the middle of one block. Along x it is a polynomial in t = X - X(middle),
// K = sum_k t^k taylor[k]: exact, so there is no step anywhere. K^2 is taken to first order in t: at the ends of a
// block it is off by (16 px / x_scale)^2 of the curvature of K^2 over the field.
struct Taps {
  int count;                    // ky * kx
  std::vector<double> by_row;   // [order + 1][count]: sum_j Y^j planes[ij]
  std::vector<float> taylor;    // [order + 1][count]
  std::vector<float> squared;   // [2][count]: K^2 and its derivative by t
  std::vector<float> absolute;  // [order + 1][count]: |K|, where no tap changes its sign within the block

  Taps(int n, int order)
      : count(n), by_row(n * (order + 1)), taylor(n * (order + 1)), squared(2 * n), absolute(n * (order + 1)) {}
};

template <int ORDER>
SKYLOOM_INLINE void collapse_y(const VaryingKernel& kernel, double y, Taps& taps) {
  const double Y = (y - kernel.y_centre) / kernel.y_scale;
  const double* plane = kernel.planes;
  for (int i = 0; i <= ORDER; ++i) {
    double* row = taps.by_row.data() + i * taps.count;
    double power = 1.0;
    for (int j = 0; j <= ORDER - i; ++j, plane += taps.count, power *= Y)
      for (int tap = 0; tap < taps.count; ++tap) row[tap] = (j == 0 ? 0.0 : row[tap]) + power * plane[tap];
  }
}

// Taylor coefficients about X: taylor[k] = sum_{i >= k} binomial(i, k) X^(i - k) by_row[i].
template <int ORDER>
SKYLOOM_INLINE void expand_x(double X, Taps& taps) {
  const int n = taps.count;
  for (int k = 0; k <= ORDER; ++k) {
    double factor[ORDER + 1];
    double power = 1.0, binomial = 1.0;
    for (int i = k; i <= ORDER; ++i) {
      factor[i] = power * binomial;
      power *= X;
      binomial = binomial * (i + 1) / (i + 1 - k);
    }
    const double* by_row = taps.by_row.data();
    float* taylor = taps.taylor.data() + k * n;
    for (int tap = 0; tap < n; ++tap) {
      double value = 0.0;
      for (int i = k; i <= ORDER; ++i) value += factor[i] * by_row[i * n + tap];
      taylor[tap] = static_cast<float>(value);
    }
  }
  const float* k0 = taps.taylor.data();
  const float* k1 = ORDER > 0 ? k0 + n : nullptr;
  float* squared = taps.squared.data();
  float* absolute = taps.absolute.data();
  for (int tap = 0; tap < n; ++tap) squared[tap] = k0[tap] * k0[tap];
  for (int k = 0; k <= ORDER; ++k)
    for (int tap = 0; tap < n; ++tap) absolute[k * n + tap] = std::copysign(1.0f, k0[tap]) * k0[k * n + tap];
  if constexpr (ORDER > 0)
    for (int tap = 0; tap < n; ++tap) squared[n + tap] = 2.0f * k0[tap] * k1[tap];
}

// sums[k][lane] = sum over taps of taps[k][tap] * image[row + v][column + u + lane]. Each row of the kernel is summed on
// its own first, which keeps the rounding error at that of about ky + kx additions.
template <int LANES, int N>
SKYLOOM_INLINE void correlate(const float* image, std::int64_t stride, const float* taps, int ky, int kx,
                              Chunk<LANES> (&sums)[N]) {
  using Vec = typename Chunk<LANES>::Vec;
  constexpr int kParts = Chunk<LANES>::kParts;
  const int n = ky * kx;
  for (int k = 0; k < N; ++k) sums[k] = {};
  for (int v = 0; v < ky; ++v) {
    const float* row = image + v * stride;
    const float* tap = taps + v * kx;
    Chunk<LANES> partial[N] = {};
    for (int u = 0; u < kx; ++u)
      for (int p = 0; p < kParts; ++p) {
        Vec pixels;
        std::memcpy(&pixels, row + u + p * LANES, sizeof pixels);
        for (int k = 0; k < N; ++k) partial[k].part[p] += tap[k * n + u] * pixels;
      }
    for (int k = 0; k < N; ++k)
      for (int p = 0; p < kParts; ++p) sums[k].part[p] += partial[k].part[p];
  }
}

// to[lane] = sum_k t^k sums[k][lane]
template <int LANES, int N>
SKYLOOM_INLINE void polynomial(const Chunk<LANES> (&sums)[N], const float* t, float* to) {
  float terms[N][kChunk];
  std::memcpy(terms, sums, sizeof terms);
  for (int lane = 0; lane < kChunk; ++lane) {
    float value = terms[N - 1][lane];
    for (int k = N - 2; k >= 0; --k) value = value * t[lane] + terms[k][lane];
    to[lane] = value;
  }
}

// The share of the kernel's weight, lane by lane, that usable pixels get: sum k u / sum k, for the kernel's polynomial `taps`.
template <int LANES, int ORDER>
SKYLOOM_INLINE void usable_share(const float* usable, std::int64_t stride, const float* taps, int ky, int kx,
                                 const float* t, float* share) {
  Chunk<LANES> sums[ORDER + 1];
  correlate<LANES, ORDER + 1>(usable, stride, taps, ky, kx, sums);
  polynomial<LANES, ORDER + 1>(sums, t, share);
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

template <int LANES, int ORDER>
SKYLOOM_INLINE void convolve_chunk(const ConvolvePlanes& planes, const VaryingKernel& kernel, const Taps& taps,
                                   const float* t, bool masked, std::int64_t in, std::int64_t out) {
  const int ky = kernel.ky, kx = kernel.kx;
  Chunk<LANES> data[ORDER + 1];
  correlate<LANES, ORDER + 1>(planes.data + in, planes.stride, taps.taylor.data(), ky, kx, data);
  polynomial<LANES, ORDER + 1>(data, t, planes.out + out);
  if (planes.variance != nullptr) {
    constexpr int kTerms = ORDER > 0 ? 2 : 1;
    Chunk<LANES> variance[kTerms];
    correlate<LANES, kTerms>(planes.variance + in, planes.stride, taps.squared.data(), ky, kx, variance);
    polynomial<LANES, kTerms>(variance, t, planes.out_variance + out);
  }
  if (masked) {
    weigh_mask<LANES, ORDER>(planes, kernel, taps, t, in, out);
  } else if (planes.usable != nullptr) {
    for (int lane = 0; lane < kChunk; ++lane) {
      planes.out_lost[out + lane] = 0.0f;
      planes.out_kept[out + lane] = 1.0f;
    }
  }
}

template <int LANES, int ORDER>
SKYLOOM_INLINE void convolve_rows(const VaryingKernel& kernel, const ConvolvePlanes& planes, std::int64_t row_start,
                                  std::int64_t row_stop) {
  Taps taps(kernel.ky * kernel.kx, ORDER);
  float t[kBlock] = {};
  UnusableInReach unusable(planes, kernel.ky, row_start);
  if constexpr (ORDER == 0) {
    collapse_y<0>(kernel, 0.0, taps);
    expand_x<0>(0.0, taps);
  }
  for (std::int64_t y = row_start; y < row_stop; ++y) {
    if constexpr (ORDER > 0) collapse_y<ORDER>(kernel, static_cast<double>(y), taps);
    for (std::int64_t x = 0; x < planes.width; x += kChunk) {
      const int offset = static_cast<int>(x % kBlock);
      if (ORDER > 0 && offset == 0) {
        const double middle = 0.5 * (x + std::min(x + kBlock, planes.columns) - 1);
        expand_x<ORDER>((middle - kernel.x_centre) / kernel.x_scale, taps);
        for (int lane = 0; lane < kBlock; ++lane) t[lane] = static_cast<float>((x + lane - middle) / kernel.x_scale);
      }
      convolve_chunk<LANES, ORDER>(planes, kernel, taps, t + offset, unusable.any(x, kChunk + kernel.kx - 1),
                                   y * planes.stride + x, y * planes.width + x);
    }
    if (y + 1 < row_stop) unusable.step(y);
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

#include "drizzle_shares.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

constexpr double kFwhm = 2.3548;  // of a Gaussian, in standard deviations, as the reference has it

// Positions of 1e4 pixels are known to 2e-12: what comes out smaller than this is no overlap, and no lobe.
constexpr double kNoise = 1e-12;

SKYLOOM_INLINE double round_half_up(double v) { return std::floor(v + 0.5); }

// floor(x + shift), rounded in the same way wherever the frame has its origin: tiles have the same boxes as the whole.
SKYLOOM_INLINE double floor_of_sum(double x, double shift) {
  const double cell = round_half_up(x);
  return cell + std::floor((x - cell) + shift);
}

// exp(v) for v <= 0; 0 below -708. Cody & Waite's reduction to |r| <= log(2) / 2, then the Taylor series, whose first
// term left out is r^14 / 14! = 4e-18.
SKYLOOM_INLINE double exp_of_negative(double v) {
  constexpr double shifter = 0x1.8p52;  // moves the integer part of a number into its lowest bits
  const double bounded = v < -708.0 ? -708.0 : v;
  const double shifted = bounded * 1.4426950408889634 + shifter, n = shifted - shifter;
  const double r = (bounded - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double sum = 1.0 / 6227020800.0;
  constexpr double terms[13] = {1, 1, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                                1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
#pragma GCC unroll 13
  for (int i = 12; i >= 0; --i) sum = sum * r + terms[i];
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) << 52) + (uint64_t(1023) << 52));
  return v < -708.0 ? 0.0 : sum * power;
}

// sinc(u) sinc(u / N), without its zeros at |u| = 1 ... N and a second one at N, as a polynomial in t = u^2 on
// [0, N^2]: Chebyshev interpolation, with an error of 1e-15 (N = 2) and 4e-15 (N = 3) of the kernel's peak.
template <int N>
SKYLOOM_INLINE double lanczos(double t) {
  constexpr int degree = N == 2 ? 12 : 13;
  constexpr double terms[2][14] = {
      {1.0, -0.5561675835602443, 0.14217697259205722, -0.02239221199649997, 0.002455774016105784,
       -0.00020089640919672273, 1.2819115784839433e-05, -6.585865582485284e-07, 2.789511804235842e-08,
       -9.910007649217822e-10, 2.9653328968829086e-11, -7.129123607013676e-13, 1.0701297763861739e-14, 0.0},
      {1.0, -0.35548229649791463, 0.05893688610220235, -0.006100567281386775, 0.0004450739731276451,
       -2.448816893340555e-05, 1.0614517134416392e-06, -3.7378152075354123e-08, 1.0940674987725318e-09,
       -2.7074762858453816e-11, 5.715197385413399e-13, -1.014819008299015e-14, 1.3944857732084899e-16,
       -1.1076329882900846e-18},
  };
  double sum = terms[N - 2][degree];
#pragma GCC unroll 13
  for (int i = degree - 1; i >= 0; --i) sum = sum * t + terms[N - 2][i];
  const double end = 1 - t * (1.0 / (N * N));
  sum *= (1 - t) * (end * end);
  if (N == 3) sum *= 1 - t * 0.25;
  const double share = t < double(N * N) ? sum : 0.0;
  return std::fabs(share) > kNoise ? share : 0.0;
}

// What a cell at the distance d gets of a drop, before its box is cut out and its shares are normalised.
// nearest: square of the distance to the nearest cell, if the largest share shall be near 1; else 0.
template <Shape shape>
SKYLOOM_INLINE double share_at(const Kernel& kernel, double d, double nearest) {
  if constexpr (shape == Shape::turbo) {
    const double h = kernel.reach, low = d - 0.5 > -h ? d - 0.5 : -h, high = d + 0.5 < h ? d + 0.5 : h;
    return high - low > kNoise ? (high - low) * kernel.factor : 0.0;
  } else if constexpr (shape == Shape::gaussian) {
    return kernel.factor * exp_of_negative(-kernel.exponent * (d * d - nearest));
  } else if constexpr (shape == Shape::lanczos2 || shape == Shape::lanczos3) {
    const double u = d * kernel.factor;
    return lanczos<shape == Shape::lanczos2 ? 2 : 3>(u * u);
  } else {
    return 1.0;
  }
}

template <Shape shape>
SKYLOOM_INLINE double nearest_cell(const Kernel& kernel, double x) {
  const double d = x - round_half_up(x);
  return shape == Shape::gaussian && kernel.normalised ? d * d : 0.0;
}

template <Shape shape>
SKYLOOM_INLINE void shares_of_batch(const Kernel& kernel, const double* __restrict x, Shares& __restrict out) {
  const int taps = int(kernel.taps);
  alignas(64) double sum[kBatch], nearest[kBatch], last[kBatch];
  for (int k = 0; k < kBatch; ++k) {
    sum[k] = 0;
    nearest[k] = nearest_cell<shape>(kernel, x[k]);
    last[k] = floor_of_sum(x[k], kernel.reach + 0.5);
  }
  for (int i = 0; i < taps; ++i)
#pragma GCC ivdep
    for (int k = 0; k < kBatch; ++k) {
      const double cell = out.first[k] + i;
      double share = share_at<shape>(kernel, x[k] - cell, nearest[k]);
      if (shape == Shape::gaussian) share = cell <= last[k] ? share : 0.0;
      out.share[i][k] = share;
      sum[k] += share;
    }
  if (!kernel.normalised) return;
  for (int k = 0; k < kBatch; ++k) sum[k] = 1 / sum[k];
  for (int i = 0; i < taps; ++i)
    for (int k = 0; k < kBatch; ++k) out.share[i][k] *= sum[k];
}

template <Shape shape>
SKYLOOM_INLINE void shares_of_one(const Kernel& kernel, double x, double first, double* __restrict share) {
  const int64_t taps = kernel.taps;
  const double nearest = nearest_cell<shape>(kernel, x), last = floor_of_sum(x, kernel.reach + 0.5);
  for (int64_t i = 0; i < taps; ++i) {
    const double cell = first + double(i);
    share[i] = share_at<shape>(kernel, x - cell, nearest);
    if (shape == Shape::gaussian) share[i] = cell <= last ? share[i] : 0.0;
  }
  if (!kernel.normalised) return;
  double sum = 0;
  for (int64_t i = 0; i < taps; ++i) sum += share[i];
  for (int64_t i = 0; i < taps; ++i) share[i] /= sum;
}

SKYLOOM_INLINE void find_first_cells_body(const Kernel& kernel, const double* __restrict x, double* __restrict first) {
  const bool is_lanczos = kernel.shape == Shape::lanczos2 || kernel.shape == Shape::lanczos3;
  const double shift = (is_lanczos ? 1.0 : 0.5) - kernel.reach;
  for (int k = 0; k < kBatch; ++k) first[k] = floor_of_sum(x[k], shift);
}

SKYLOOM_DISPATCH(void, find_first_cells, (const Kernel& kernel, const double* x, double* first), (kernel, x, first))

#define SKYLOOM_OF_SHAPE(FUNCTION, ARGS)                                   \
  switch (kernel.shape) {                                                  \
    case Shape::point: return FUNCTION<Shape::point> ARGS;                 \
    case Shape::turbo: return FUNCTION<Shape::turbo> ARGS;                 \
    case Shape::gaussian: return FUNCTION<Shape::gaussian> ARGS;           \
    case Shape::lanczos2: return FUNCTION<Shape::lanczos2> ARGS;           \
    default: return FUNCTION<Shape::lanczos3> ARGS;                        \
  }

SKYLOOM_INLINE void find_batch_shares_body(const Kernel& kernel, const double* x, Shares& shares) {
  SKYLOOM_OF_SHAPE(shares_of_batch, (kernel, x, shares))
}

SKYLOOM_DISPATCH(void, find_batch_shares, (const Kernel& kernel, const double* x, Shares& shares), (kernel, x, shares))

}  // namespace

Kernel::Kernel(Shape shape_, double pixfrac, double scale_ratio, bool normalised_)
    : shape(shape_), normalised(normalised_), reach(0), factor(1), exponent(0), taps(1) {
  if (shape == Shape::turbo) {
    reach = pixfrac / (2 * scale_ratio);
    factor = 1 / (2 * reach);
  } else if (shape == Shape::gaussian) {
    exponent = kFwhm * kFwhm * scale_ratio * scale_ratio / (2 * pixfrac * pixfrac);
    factor = normalised ? 1.0 : std::sqrt(exponent / 3.14159265358979323846);
    reach = std::max(2.5 * pixfrac / kFwhm, 1.2) / scale_ratio;
  } else if (shape != Shape::point) {
    // normalised shares of a kernel narrower than an output pixel would divide by sums around 0
    factor = normalised ? std::min(scale_ratio, 1.0) : scale_ratio;
    reach = (shape == Shape::lanczos2 ? 2 : 3) / factor;
  }
  // floor(a + 2 reach) - floor(a) is at most this; an overlap that is rounding noise does not count for turbo
  const double wide = std::min(std::ceil(2 * reach - (shape == Shape::turbo ? kNoise : 0)), 1e9);
  taps = int64_t(wide) + (shape == Shape::lanczos2 || shape == Shape::lanczos3 ? 0 : 1);
}

void first_cells(const Kernel& kernel, const double* x, double* first) { find_first_cells(kernel, x, first); }

void find_shares(const Kernel& kernel, const double* x, Shares& shares) { find_batch_shares(kernel, x, shares); }

void find_wide_shares(const Kernel& kernel, double x, double first, double* share) {
  SKYLOOM_OF_SHAPE(shares_of_one, (kernel, x, first, share))
}

}  // namespace skyloom::drizzle

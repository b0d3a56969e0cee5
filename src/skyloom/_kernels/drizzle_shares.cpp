#include "drizzle_shares.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "isa.hpp"
#include "vectors.hpp"

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

// A polynomial, as two of half the degree that do not wait for one another.
template <int kTerms>
SKYLOOM_INLINE double polynomial(const double (&terms)[kTerms], double t) {
  static_assert(kTerms % 2 == 0);
  const double square = t * t;
  double even = terms[kTerms - 2], odd = terms[kTerms - 1];
#pragma GCC unroll 8
  for (int i = kTerms - 4; i >= 0; i -= 2) {
    even = even * square + terms[i];
    odd = odd * square + terms[i + 1];
  }
  return odd * t + even;
}

// exp(v) for v < 709; 0 below -708. Cody & Waite's reduction to |r| <= log(2) / 2, then the Taylor series, whose first
// term left out is r^12 / 12! = 6e-15.
constexpr double kShifter = 0x1.8p52;  // moves the integer part of a number into its lowest bits
constexpr double kLog2E = 1.4426950408889634, kLog2High = 0x1.62e42fee00000p-1, kLog2Low = 0x1.a39ef35793c76p-33;
constexpr double kExpTerms[12] = {1,         1,          1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,
                                  1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800};

SKYLOOM_INLINE double exp_of(double v) {
  const double bounded = v < -708.0 ? -708.0 : v;
  const double shifted = bounded * kLog2E + kShifter, n = shifted - kShifter;
  const double r = (bounded - n * kLog2High) - n * kLog2Low;
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) << 52) + (uint64_t(1023) << 52));
  return v < -708.0 ? 0.0 : polynomial(kExpTerms, r) * power;
}

// sinc(u) sinc(u / N), without its zeros at |u| = 1 ... N and a second one at N, as a polynomial in t = u^2 on
// [0, N^2]: Chebyshev interpolation, with an error of 1e-12 (N = 2) and 3e-12 (N = 3) of the kernel's peak.
template <int N>
SKYLOOM_INLINE double lanczos(double t) {
  constexpr double terms[2][12] = {
      {1.0, -0.5561675835024288, 0.14217697201288296, -0.02239220972998573, 0.002455769458700501,
       -0.00020089105032173942, 1.2815174132276064e-05, -6.56715039688905e-07, 2.7319353687049766e-08,
       -8.791994908764091e-10, 1.6912109879411254e-11, 0.0},
      {1.0, -0.35548229641201995, 0.05893688564637752, -0.006100566332265804,
       0.00044507294998090945, -2.4487516492064373e-05, 1.061187060644862e-06, -3.7307140309081326e-08,
       1.0812626328727726e-09, -2.553089211525382e-11, 4.507457302868425e-13, -4.434757472409854e-15},
  };
  const double end = 1 - t * (1.0 / (N * N));
  double zeros = (1 - t) * (end * end);
  if (N == 3) zeros *= 1 - t * 0.25;
  double share = polynomial(terms[N - 2], t) * zeros;
  share = std::fabs(share) > kNoise ? share : 0.0;
  return t < double(N * N) ? share : 0.0;
}

// What a cell at the distance d gets of a drop, before its box is cut out and its shares are normalised.
// nearest: square of the distance to the nearest cell, if the largest share shall be near 1; else 0.
template <Shape shape>
SKYLOOM_INLINE double share_at(const KernelSize& kernel, double d, double nearest) {
  if constexpr (shape == Shape::turbo) {
    const double h = kernel.reach, low = d - 0.5 > -h ? d - 0.5 : -h, high = d + 0.5 < h ? d + 0.5 : h;
    return high - low > kNoise ? (high - low) * kernel.factor : 0.0;
  } else if constexpr (shape == Shape::gaussian) {
    return kernel.factor * exp_of(-kernel.exponent * (d * d - nearest));
  } else if constexpr (shape == Shape::lanczos2 || shape == Shape::lanczos3) {
    const double u = d * kernel.factor;
    return lanczos<shape == Shape::lanczos2 ? 2 : 3>(u * u);
  } else {
    return 1.0;
  }
}

// Where the drops of a batch lie between cells, as in LanczosTaps.
struct Fractions {
  alignas(64) double t[kBatch], u[kBatch], v[kBatch], both[kBatch];  // t, u = 2 t - 1, u^2, t (1 - t)
};

// The shares of one cell and of its mirror image.
template <int kTerms, bool kEnds, bool kCut>
SKYLOOM_INLINE void mirrored_shares(const LanczosTaps& lanczos, int i, double limit, const Fractions& __restrict f,
                                    double* __restrict here, double* __restrict there) {
  double even[kTerms], odd[kTerms];
  std::copy_n(lanczos.even[i], kTerms, even);
  std::copy_n(lanczos.odd[i], kTerms, odd);
  const double begin = lanczos.begin[i], end = lanczos.end[i], stop = i == 0 ? limit : 2;
  for (int k = 0; k < kBatch; ++k) {
    const double v = f.v[k], t = f.t[k], back = 1 - t;
    double e = even[0], o = odd[0];
    for (int n = 1; n < kTerms; ++n) {
      e = e * v + even[n];
      o = o * v + odd[n];
    }
    double s = f.both[k] * (e + o * f.u[k]), mirrored = f.both[k] * (e - o * f.u[k]);
    if (kEnds) {
      s += begin * t + end * back;
      mirrored += begin * back + end * t;
    }
    here[k] = !kCut || ((std::fabs(s) > kNoise) & (t < stop)) ? s : 0.0;
    there[k] = !kCut || ((std::fabs(mirrored) > kNoise) & (back < stop)) ? mirrored : 0.0;
  }
}

template <int kTerms>
SKYLOOM_INLINE void lanczos_taps(const LanczosTaps& lanczos, int taps, double limit, const Fractions& f,
                                 double (*__restrict share)[kBatch]) {
  for (int i = 0; i < (taps + 1) / 2; ++i) {
    double *here = share[i], *there = share[taps - 1 - i];
    if (i == 0 || !lanczos.zeros_at_ends) {  // the outermost zero is a double one: what is near it is small, too
      mirrored_shares<kTerms, true, true>(lanczos, i, limit, f, here, there);
    } else if (lanczos.begin[i] != 0 || lanczos.end[i] != 0) {
      mirrored_shares<kTerms, true, false>(lanczos, i, limit, f, here, there);
    } else {
      mirrored_shares<kTerms, false, false>(lanczos, i, limit, f, here, there);
    }
  }
}

SKYLOOM_INLINE void lanczos_of_batch(const Kernel& kernel, const double* __restrict x, const double* __restrict first,
                                     double (*__restrict share)[kBatch]) {
  const int taps = int(kernel.taps), order = kernel.shape == Shape::lanczos2 ? 2 : 3;
  const double half = 0.5 * taps, limit = order / kernel.factor - half + 1;
  Fractions f;
  for (int k = 0; k < kBatch; ++k) {
    const double place = x[k] - first[k] + (1 - half);
    const double low = place > kNoise ? place : 0.0, t = low < 1 - kNoise ? low : 1.0, back = 1 - t;
    f.t[k] = t;
    f.u[k] = t - back;
    f.v[k] = (t - back) * (t - back);
    f.both[k] = t * back;
  }
  switch (kernel.lanczos.terms) {
    case 6: return lanczos_taps<6>(kernel.lanczos, taps, limit, f, share);
    case 7: return lanczos_taps<7>(kernel.lanczos, taps, limit, f, share);
    case 8: return lanczos_taps<8>(kernel.lanczos, taps, limit, f, share);
    default: return lanczos_taps<9>(kernel.lanczos, taps, limit, f, share);
  }
}

template <Shape shape>
SKYLOOM_INLINE double nearest_cell(const KernelSize& kernel, double x) {
  const double d = x - round_half_up(x);
  return shape == Shape::gaussian && kernel.normalised ? d * d : 0.0;
}

// exp of what is not near underflow or overflow, as above.
template <class Vector>
SKYLOOM_INLINE void exp_of_vector(const Vector& v, Vector& out) {
  typedef decltype(v < v) Bits;
  const Vector shifted = v * kLog2E + kShifter, n = shifted - kShifter;
  const Vector r = (v - n * kLog2High) - n * kLog2Low, square = r * r;
  Vector even = r - r + kExpTerms[10], odd = r - r + kExpTerms[11];
#pragma GCC unroll 8
  for (int i = 8; i >= 0; i -= 2) {
    even = even * square + kExpTerms[i];
    odd = odd * square + kExpTerms[i + 1];
  }
  const Bits power = ((Bits)shifted << 52) + (int64_t(1023) << 52);
  out = (odd * r + even) * (Vector)power;
}

// Gaussian shares from one cell to the next: exp(-e (d - 1)^2) = exp(-e d^2) q with q = exp(e (2 d - 1)), and the next q is
// this one times exp(-2 e). Two exponentials for a drop instead of one for each cell; not for values near underflow.
template <class Vector>
SKYLOOM_INLINE void gaussian_steps(const KernelSize& kernel, const double* __restrict x, const double* __restrict first,
                                   double (*__restrict share)[kBatch]) {
  constexpr int kLanes = sizeof(Vector) / sizeof(double);
  alignas(64) double distance[kBatch], log_factor[kBatch], reaches_last[kBatch];
  const double e = kernel.exponent, end = kernel.reach + 0.5, factor = kernel.factor;
  const double own = kernel.normalised ? e : 0.0;  // relative to the nearest cell
  const int last = int(kernel.taps) - 1;
  for (int k = 0; k < kBatch; ++k) {
    const double near = x[k] - round_half_up(x[k]);
    distance[k] = x[k] - first[k];
    log_factor[k] = own * near * near;
    reaches_last[k] = floor_of_sum(x[k], end) - first[k] >= last ? 1.0 : 0.0;
  }
  const double slower = std::exp(-2 * e);
  for (int k = 0; k < kBatch; k += kLanes) {
    const Vector d = load_vector<Vector>(distance + k);
    Vector now, step;
    exp_of_vector(load_vector<Vector>(log_factor + k) - e * d * d, now);
    exp_of_vector(e * (2 * d - 1), step);
    now *= factor;
    for (int i = 0; i < last; ++i) {
      std::memcpy(share[i] + k, &now, sizeof now);
      now *= step;
      step *= slower;
    }
    now *= load_vector<Vector>(reaches_last + k);
    std::memcpy(share[last] + k, &now, sizeof now);
  }
}

template <Shape shape, class Vector>
SKYLOOM_INLINE void shares_of_batch(const Kernel& kernel_, const double* __restrict x, const double* __restrict first,
                                    double (*__restrict share)[kBatch]) {
  const KernelSize kernel = kernel_;  // a copy that no store can change
  const int taps = int(kernel.taps);
  alignas(64) double nearest[kBatch], last[kBatch];
  if (shape == Shape::gaussian)
    for (int k = 0; k < kBatch; ++k) {
      nearest[k] = nearest_cell<shape>(kernel, x[k]);
      last[k] = floor_of_sum(x[k], kernel.reach + 0.5);
    }
  const bool steps = shape == Shape::gaussian && kernel.exponent * (kernel.reach + 1) * (kernel.reach + 1) < 300;
  if (steps) gaussian_steps<Vector>(kernel, x, first, share);
  const bool lanczos = shape >= Shape::lanczos2 && kernel_.lanczos.terms > 0;
  if (lanczos) lanczos_of_batch(kernel_, x, first, share);
  for (int i = 0; i < (steps || lanczos ? 0 : taps); ++i) {
    double* __restrict out = share[i];
    for (int k = 0; k < kBatch; ++k) {
      const double cell = first[k] + i;
      if constexpr (shape == Shape::gaussian) {
        const double whole = share_at<shape>(kernel, x[k] - cell, nearest[k]);
        out[k] = cell <= last[k] ? whole : 0.0;
      } else {
        out[k] = share_at<shape>(kernel, x[k] - cell, 0.0);
      }
    }
  }
  if (!kernel.normalised) return;
  alignas(64) double sum[kBatch];
  std::fill_n(sum, kBatch, 0.0);
  for (int i = 0; i < taps; ++i)
    for (int k = 0; k < kBatch; ++k) sum[k] += share[i][k];
  for (int k = 0; k < kBatch; ++k) sum[k] = 1 / sum[k];
  for (int i = 0; i < taps; ++i)
    for (int k = 0; k < kBatch; ++k) share[i][k] *= sum[k];
}

template <Shape shape>
SKYLOOM_INLINE void shares_of_one(const Kernel& kernel_, double x, double first, double* __restrict share) {
  const KernelSize kernel = kernel_;
  const double nearest = nearest_cell<shape>(kernel, x), last = floor_of_sum(x, kernel.reach + 0.5);
  for (int i = 0; i < int(kernel.taps); ++i) {
    const double cell = first + i, whole = share_at<shape>(kernel, x - cell, nearest);
    share[i] = shape == Shape::gaussian && cell > last ? 0.0 : whole;
  }
  if (!kernel.normalised) return;
  double sum = 0;
  for (int i = 0; i < int(kernel.taps); ++i) sum += share[i];
  for (int i = 0; i < int(kernel.taps); ++i) share[i] /= sum;
}

SKYLOOM_INLINE void find_first_cells_body(const Kernel& kernel, const double* __restrict x, double* __restrict first) {
  const bool is_lanczos = kernel.shape == Shape::lanczos2 || kernel.shape == Shape::lanczos3;
  const double shift = (is_lanczos ? 1.0 : 0.5) - kernel.reach;
  for (int k = 0; k < kBatch; ++k) first[k] = floor_of_sum(x[k], shift);
}

SKYLOOM_DISPATCH(void, find_first_cells, (const Kernel& kernel, const double* x, double* first), (kernel, x, first))

#define SKYLOOM_OF_SHAPE(CALL)                             \
  switch (kernel.shape) {                                  \
    case Shape::point: return CALL(Shape::point);          \
    case Shape::turbo: return CALL(Shape::turbo);          \
    case Shape::gaussian: return CALL(Shape::gaussian);    \
    case Shape::lanczos2: return CALL(Shape::lanczos2);    \
    default: return CALL(Shape::lanczos3);                 \
  }

template <int kFloats>
SKYLOOM_INLINE void find_batch_shares_body(const Kernel& kernel, const double* x, Shares& shares) {
#define SKYLOOM_CALL(SHAPE) shares_of_batch<SHAPE, VectorOf<kFloats>>(kernel, x, shares.first, shares.share)
  SKYLOOM_OF_SHAPE(SKYLOOM_CALL)
#undef SKYLOOM_CALL
}

SKYLOOM_DISPATCH_LANES(void, find_batch_shares, (const Kernel& kernel, const double* x, Shares& shares), (kernel, x, shares))

SKYLOOM_INLINE void find_one_drop_body(const Kernel& kernel, double x, double first, double* share) {
#define SKYLOOM_CALL(SHAPE) shares_of_one<SHAPE>(kernel, x, first, share)
  SKYLOOM_OF_SHAPE(SKYLOOM_CALL)
#undef SKYLOOM_CALL
}

SKYLOOM_DISPATCH(void, find_one_drop, (const Kernel& kernel, double x, double first, double* share),
                 (kernel, x, first, share))

}  // namespace

LanczosTaps::LanczosTaps(int order, double factor, int taps) {
  typedef long double Real;
  constexpr Real pi = 3.14159265358979323846264338327950288L;
  const auto sinc = [&](Real u) { return u == 0 ? Real(1) : std::sin(pi * u) / (pi * u); };
  // Chebyshev coefficients of sin(a u) decrease as the Bessel functions J_n(a) do: (a / 2)^n / n!
  const double half_phase = 0.25 * double(pi) * factor * (1 + 1.0 / order);
  double rest = half_phase * half_phase / 2;  // n = 2 + 2 terms
  while (rest > 1e-14) {
    if (++terms > kMost) break;
    const double n = 2 + 2 * terms;
    rest *= half_phase * half_phase / (n * (n - 1));
  }
  if (terms > kMost) {
    terms = 0;
    return;
  }
  terms = std::max(terms, kFewest);
  const double cells = 1 / factor;
  zeros_at_ends = cells == std::floor(cells) && cells * factor == 1;
  for (int i = 0; i < (taps + 1) / 2; ++i) {
    const auto share = [&](Real t) {
      const Real u = factor * (t + 0.5L * taps - 1 - i);
      return sinc(u) * sinc(u / order);
    };
    const Real at_0 = share(0), at_1 = share(1);
    end[i] = double(std::fabs(at_0) > kNoise ? at_0 : 0);
    begin[i] = double(std::fabs(at_1) > kNoise ? at_1 : 0);
    const auto rest_at = [&](Real u) {
      const Real t = (1 + u) / 2, back = (1 - u) / 2;
      return (share(t) - end[i] * back - begin[i] * t) / (t * back);
    };
    // interpolation in v = u^2 at Chebyshev nodes, by divided differences
    Real v[kMost], e[kMost], o[kMost];
    for (int n = 0; n < terms; ++n) {
      v[n] = (1 + std::cos(pi * (n + 0.5L) / terms)) / 2;
      const Real u = std::sqrt(v[n]), above = rest_at(u), below = rest_at(-u);
      e[n] = (above + below) / 2;
      o[n] = (above - below) / (2 * u);
    }
    for (Real* values : {e, o}) {
      for (int order_ = 1; order_ < terms; ++order_)
        for (int n = terms - 1; n >= order_; --n) values[n] = (values[n] - values[n - 1]) / (v[n] - v[n - order_]);
      Real power[kMost] = {values[terms - 1]};  // ascending
      for (int n = terms - 2; n >= 0; --n) {    // power = power (x - v[n]) + values[n]
        for (int m = terms - 1; m > 0; --m) power[m] = power[m - 1] - v[n] * power[m];
        power[0] = values[n] - v[n] * power[0];
      }
      for (int m = 0; m < terms; ++m) (values == e ? even : odd)[i][m] = double(power[terms - 1 - m]);
    }
  }
}

Kernel::Kernel(Shape shape_, double pixfrac, double scale_ratio, bool normalised_)
    : KernelSize{shape_, normalised_, 0, 1, 0, 1} {
  const bool is_lanczos = shape == Shape::lanczos2 || shape == Shape::lanczos3;
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
  taps = int64_t(wide) + (is_lanczos ? 0 : 1);
  if (is_lanczos) {
    reach = 0.5 * double(taps);
    if (taps <= kMaxTaps) lanczos = LanczosTaps(shape == Shape::lanczos2 ? 2 : 3, factor, int(taps));
  }
}

void first_cells(const Kernel& kernel, const double* x, double* first) { find_first_cells(kernel, x, first); }

void find_shares(const Kernel& kernel, const double* x, Shares& shares) { find_batch_shares(kernel, x, shares); }

void find_wide_shares(const Kernel& kernel, double x, double first, double* share) {
  find_one_drop(kernel, x, first, share);
}

}  // namespace skyloom::drizzle

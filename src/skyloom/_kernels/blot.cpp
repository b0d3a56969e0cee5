#include "blot.hpp"

#include <algorithm>
#include <cmath>

namespace skyloom {
namespace {

// The weights of one axis on the pixels of the image: what falls outside is folded back by the border's rule.
template <int Taps>
struct FoldedAxis {
  std::ptrdiff_t size, first;  // pixels of the image along this axis, and the pixel of weight[0]
  int count;
  double weight[Taps] = {};

  FoldedAxis(std::ptrdiff_t left, std::ptrdiff_t n)
      : size(n),
        first(std::clamp(left, std::ptrdiff_t(0), std::max(n - Taps, std::ptrdiff_t(0)))),
        count(int(std::min(std::ptrdiff_t(Taps), n))) {}

  void add(std::ptrdiff_t pixel, double w, Border border) {
    const std::ptrdiff_t last = size - 1;
    while (border == Border::odd && size > 1 && (pixel < 0 || pixel > last)) {
      const std::ptrdiff_t end = pixel < 0 ? 0 : last;
      weight[end - first] += 2 * w;
      pixel = 2 * end - pixel;
      w = -w;
    }
    weight[std::clamp(pixel, std::ptrdiff_t(0), last) - first] += w;
  }
};

// The general case: the stencil reaches outside, or a pixel in it is not finite. NaN or infinite if there is no value.
template <class T, int Taps>
double interpolate_generally(const BlotInput<T>& in, const Group<T, Taps>& group, int g, Border border) {
  const std::ptrdiff_t column = group.base[g][0], row = group.base[g][1];
  const std::ptrdiff_t left = column - Taps / 2 + 1, low = row - Taps / 2 + 1;
  FoldedAxis<Taps> x(left, in.nx), y(low, in.ny);
  for (int k = 0; k < Taps; ++k) {
    x.add(left + k, double(group.wx[k][g]), border);
    y.add(low + k, double(group.wy[k][g]), border);
  }
  const double anchor = double(in.data[row * in.nx + column]);
  double sum = 0;
  for (int j = 0; j < y.count; ++j)
    for (int k = 0; k < x.count; ++k) {
      const double w = y.weight[j] * x.weight[k];
      if (w != 0) sum += w * (double(in.data[(y.first + j) * in.nx + x.first + k]) - anchor);
    }
  return anchor + sum;
}

// Coordinate systems and pixel maps round positions, by 1e-9 pixels or so: an image that lies pixel on pixel must neither
// lose its first row by that nor gain one at the end.
constexpr double kRounding = 1e-6;

SKYLOOM_INLINE bool is_inside(double x, double y, std::ptrdiff_t nx, std::ptrdiff_t ny) {
  return x >= -kRounding && x < double(nx) - kRounding && y >= -kRounding && y < double(ny) - kRounding;  // false for NaN
}

// A group whose stencils all lie in the image.
template <class T, int Taps>
SKYLOOM_INLINE void blot_group(const BlotInput<T>& in, const TapPolynomials<T, Taps>& polynomials, const double* xy,
                               typename Lanes<T>::Vector& value) {
  Group<T, Taps> group;
  group.locate(xy, polynomials);
  std::ptrdiff_t corners[group.kWidth];
  for (int g = 0; g < group.kWidth; ++g) corners[g] = group.corner(g, in.nx);
  group.mean(in.data, corners, in.nx, value);
}

// A group of which some stencils reach outside of the image, or hold a pixel that is not finite: those one by one, all
// others as above, so that no value depends on the other positions of its group.
template <class T, int Taps>
void blot_mixed_group(const BlotInput<T>& in, const TapPolynomials<T, Taps>& polynomials,
                      const typename Group<T, Taps>::Interior& interior, Border border, const BlotValues& values,
                      std::ptrdiff_t start, T* out) {
  constexpr int Width = Group<T, Taps>::kWidth;
  const int count = int(std::min(std::ptrdiff_t(Width), in.n - start));
  const double* xy = in.xy + 2 * start;
  double chosen[2 * Width], position[2 * Width] = {};
  typename Lanes<T>::Vector value;
  unsigned done = interior.choose(xy, count, chosen);
  if (done != 0) blot_group(in, polynomials, chosen, value);
  for (int g = 0; g < count; ++g) {
    if ((done >> g & 1) != 0 && std::isfinite(value[g])) {
      out[start + g] = value[g] * T(values.scale);
      continue;
    }
    done &= ~(1u << g);
    if (!is_inside(xy[2 * g], xy[2 * g + 1], in.nx, in.ny)) continue;
    for (int i = 2 * g; i < 2 * g + 2; ++i) position[i] = std::max(xy[i], 0.0);
  }
  Group<T, Taps> group;
  group.locate(position, polynomials);
  for (int g = 0; g < count; ++g) {
    if ((done >> g & 1) != 0) continue;
    const bool inside = is_inside(xy[2 * g], xy[2 * g + 1], in.nx, in.ny);
    const double v = inside ? interpolate_generally(in, group, g, border) : NAN;
    out[start + g] = std::isfinite(v) ? T(v) * T(values.scale) : T(values.fill);
  }
}

template <class T, int Taps>
SKYLOOM_INLINE void blot_taps(const BlotInput<T>& in, const double* coefficients, int degree, Border border,
                              const BlotValues& values, T* out) {
  using G = Group<T, Taps>;
  const TapPolynomials<T, Taps> polynomials(coefficients, degree);
  const typename G::Interior interior(in.ny, in.nx);
  const T scale = T(values.scale);
  for (std::ptrdiff_t start = 0; start < in.n; start += G::kWidth) {
    const double* xy = in.xy + 2 * start;
    if (start + G::kWidth <= in.n && interior.holds(xy)) {
      typename G::V value;
      blot_group(in, polynomials, xy, value);
      store(out + start, typename G::V(value * scale));
      const typename G::V zero = value - value;  // NaN if it is not finite
      T sum = zero[0];
      for (int g = 1; g < G::kWidth; ++g) sum += zero[g];
      if (sum == 0) continue;
    }
    blot_mixed_group(in, polynomials, interior, border, values, start, out);
  }
}

template <class T>
SKYLOOM_INLINE void blot_body(const BlotInput<T>& in, const double* coefficients, int degree, int taps, Border border,
                              const BlotValues& values, T* out) {
  switch (taps) {
    case 2: return blot_taps<T, 2>(in, coefficients, degree, border, values, out);
    case 4: return blot_taps<T, 4>(in, coefficients, degree, border, values, out);
    case 6: return blot_taps<T, 6>(in, coefficients, degree, border, values, out);
    case 8: return blot_taps<T, 8>(in, coefficients, degree, border, values, out);
    default: return blot_taps<T, 10>(in, coefficients, degree, border, values, out);
  }
}

SKYLOOM_INLINE void blot_f32_body(const BlotInput<float>& in, const double* coefficients, int degree, int taps,
                                  Border border, const BlotValues& values, float* out) {
  blot_body(in, coefficients, degree, taps, border, values, out);
}
SKYLOOM_INLINE void blot_f64_body(const BlotInput<double>& in, const double* coefficients, int degree, int taps,
                                  Border border, const BlotValues& values, double* out) {
  blot_body(in, coefficients, degree, taps, border, values, out);
}

template <class T>
void blot_nearest(const BlotInput<T>& in, const BlotValues& values, T* out) {
  for (std::ptrdiff_t i = 0; i < in.n; ++i) {
    const double x = in.xy[2 * i], y = in.xy[2 * i + 1];
    double v = NAN;
    if (is_inside(x, y, in.nx, in.ny)) {
      // x + 0.5 > 0: cutting is floor
      const std::ptrdiff_t column = std::min(std::ptrdiff_t(x + 0.5), in.nx - 1);
      const std::ptrdiff_t row = std::min(std::ptrdiff_t(y + 0.5), in.ny - 1);
      v = double(in.data[row * in.nx + column]);
    }
    out[i] = std::isfinite(v) ? T(v) * T(values.scale) : T(values.fill);
  }
}

}  // namespace

SKYLOOM_DISPATCH(void, blot_f32,
                 (const BlotInput<float>& in, const double* coefficients, int degree, int taps, Border border,
                  const BlotValues& values, float* out),
                 (in, coefficients, degree, taps, border, values, out))
SKYLOOM_DISPATCH(void, blot_f64,
                 (const BlotInput<double>& in, const double* coefficients, int degree, int taps, Border border,
                  const BlotValues& values, double* out),
                 (in, coefficients, degree, taps, border, values, out))

void blot_nearest_f32(const BlotInput<float>& in, const BlotValues& values, float* out) {
  blot_nearest(in, values, out);
}
void blot_nearest_f64(const BlotInput<double>& in, const BlotValues& values, double* out) {
  blot_nearest(in, values, out);
}

}  // namespace skyloom

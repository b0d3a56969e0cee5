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

SKYLOOM_INLINE bool is_inside(double x, double y, std::ptrdiff_t nx, std::ptrdiff_t ny) {
  return x >= 0 && x < double(nx) && y >= 0 && y < double(ny);  // false for NaN
}

template <class T, int Taps>
SKYLOOM_INLINE void blot_taps(const BlotInput<T>& in, const double* coefficients, int degree, Border border,
                              const BlotValues& values, T* out) {
  using G = Group<T, Taps>;
  constexpr int Width = G::kWidth;
  const TapPolynomials<T, Taps> polynomials(coefficients, degree);
  // a stencil fits if all its pixels are in the image, and the rest of its last vector is within the array
  const std::ptrdiff_t last_corner = in.ny * in.nx - (Taps - 1) * in.nx - G::kReach;
  G group;
  for (std::ptrdiff_t start = 0; start < in.n; start += Width) {
    const int count = int(std::min(std::ptrdiff_t(Width), in.n - start));
    double xy[2 * Width];
    bool inside[Width], fits[Width];
    const T* corner[Width];
    const T* some_corner = nullptr;
    for (int g = 0; g < Width; ++g) {
      const double* p = in.xy + 2 * (start + (g < count ? g : 0));
      inside[g] = is_inside(p[0], p[1], in.nx, in.ny);
      xy[2 * g] = inside[g] ? p[0] : 0.0;
      xy[2 * g + 1] = inside[g] ? p[1] : 0.0;
    }
    group.locate(xy, polynomials);
    for (int g = 0; g < Width; ++g) {
      const std::ptrdiff_t left = group.base[g][0] - Taps / 2 + 1, low = group.base[g][1] - Taps / 2 + 1;
      const std::ptrdiff_t offset = low * in.nx + left;
      fits[g] = inside[g] && left >= 0 && left + Taps <= in.nx && low >= 0 && low + Taps <= in.ny &&
                offset <= last_corner;
      corner[g] = fits[g] ? in.data + offset : nullptr;
      if (fits[g]) some_corner = corner[g];
    }
    typename G::V value = {};
    if (some_corner != nullptr) {
      for (int g = 0; g < Width; ++g)
        if (!fits[g]) corner[g] = some_corner;
      value = group.mean(corner, in.nx);
    }
    for (int g = 0; g < count; ++g) {
      double v = fits[g] ? double(value[g]) : NAN;
      if (inside[g] && !std::isfinite(v)) v = interpolate_generally(in, group, g, border);
      out[start + g] = inside[g] && std::isfinite(v) ? T(v * values.scale) : T(values.fill);
    }
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
      // x >= 0: cutting is floor
      const std::ptrdiff_t column = std::min(std::ptrdiff_t(x + 0.5), in.nx - 1);
      const std::ptrdiff_t row = std::min(std::ptrdiff_t(y + 0.5), in.ny - 1);
      v = double(in.data[row * in.nx + column]);
    }
    out[i] = std::isfinite(v) ? T(v * values.scale) : T(values.fill);
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

#include "interpolate.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

// A weight below this fraction of the sum of |weights| is rounding of the polynomials: it loses and marks nothing.
constexpr double kNegligible = 1e-6;

// Eight (four) lanes hold the taps of one row; lanes beyond the taps have weight 0. Sums go over the lanes in one
// fixed order, so that every instruction set gives the same bits.
template <class T, int Lanes>
struct Vector {
  typedef T type __attribute__((vector_size(sizeof(T) * Lanes)));
};

template <class V, class T>
SKYLOOM_INLINE void load(V& v, const T* p) {
  std::memcpy(&v, p, sizeof(V));
}

template <class T, int Lanes, class V>
SKYLOOM_INLINE T sum_lanes(const V& v) {
  if constexpr (Lanes == 8)
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
  else
    return (v[0] + v[2]) + (v[1] + v[3]);
}

template <class T>
SKYLOOM_INLINE void put(const Samples<T>& out, std::ptrdiff_t i, T data, T variance, std::uint32_t mask) {
  out.data[i] = data;
  if (out.variance != nullptr) out.variance[i] = variance;
  out.mask[i] = mask;
}

// The general case: the footprint (first pixel left, low) holds pixels that are masked or outside of the image.
template <class T>
SKYLOOM_INLINE void interpolate_masked(const Image<T>& in, const T* wx, const T* wy, int taps, std::ptrdiff_t left,
                                       std::ptrdiff_t low, bool inside, std::ptrdiff_t nearest_x,
                                       std::ptrdiff_t nearest_y, const MaskRules& rules, const Samples<T>& out,
                                       std::ptrdiff_t i) {
  double all = 0, lost = 0, weight = 0, sum = 0, sum_variance = 0;
  std::uint32_t culprits = 0, remarks = 0;
  bool nearest_lost = false;
  const std::uint32_t beyond = inside ? rules.edge : rules.no_data;
  for (int j = 0; j < taps; ++j)
    for (int k = 0; k < taps; ++k) all += std::abs(double(wx[k]) * double(wy[j]));
  for (int j = 0; j < taps; ++j) {
    const std::ptrdiff_t y = low + j;
    for (int k = 0; k < taps; ++k) {
      const std::ptrdiff_t x = left + k;
      const double w = double(wx[k]) * double(wy[j]);
      const bool outside = y < 0 || y >= in.ny || x < 0 || x >= in.nx;
      const std::uint32_t bits = outside ? beyond : in.mask != nullptr ? in.mask[y * in.nx + x] : 0u;
      const bool matters = std::abs(w) > kNegligible * all;
      if (outside || (bits & rules.unusable) != 0) {
        if (!matters) continue;
        lost += std::abs(w);
        culprits |= bits;
        nearest_lost = nearest_lost || (x == nearest_x && y == nearest_y);
      } else {
        weight += w;
        sum += w * double(in.data[y * in.nx + x]);
        if (in.variance != nullptr) sum_variance += w * w * double(in.variance[y * in.nx + x]);
        if (matters) remarks |= bits;
      }
    }
  }
  if (nearest_lost || lost > rules.max_lost * all || !(weight > 0.1)) {
    put(out, i, T(0), T(0), culprits | remarks);
    return;
  }
  put(out, i, T(sum / weight), T(sum_variance / (weight * weight)), remarks | (lost > 0 ? rules.spread : 0u));
}

template <class T, int Taps>
SKYLOOM_INLINE void interpolate_taps(const Image<T>& in, const double* coefficients, int degree, const MaskRules& rules,
                                     const Samples<T>& out) {
  constexpr int Lanes = Taps > 4 ? 8 : 4;
  constexpr int Half = Taps / 2;
  using V = typename Vector<T, Lanes>::type;
  V c[kMaxDegree + 1];
  for (int d = 0; d <= degree; ++d) {
    T row[Lanes] = {};
    for (int k = 0; k < Taps; ++k) row[k] = T(coefficients[d * Taps + k]);
    load(c[d], row);
  }
  const double end_x = double(in.nx) + Half, end_y = double(in.ny) + Half;
  for (std::ptrdiff_t i = 0; i < out.n; ++i) {
    const double x = out.xy[2 * i], y = out.xy[2 * i + 1];
    // false for NaN, and for positions so far outside that no tap can reach the image
    if (!(x > -Half && x < end_x && y > -Half && y < end_y)) {
      put(out, i, T(0), T(0), rules.no_data);
      continue;
    }
    const double x0 = std::floor(x), y0 = std::floor(y);
    const T ux = T(2 * (x - x0) - 1), uy = T(2 * (y - y0) - 1);
    const std::ptrdiff_t ix = std::ptrdiff_t(x0), iy = std::ptrdiff_t(y0);
    const std::ptrdiff_t left = ix - Half + 1, low = iy - Half + 1;
    if (x == x0 && y == y0 && ix >= 0 && ix < in.nx && iy >= 0 && iy < in.ny) {  // a pixel centre: nothing to interpolate
      const std::ptrdiff_t o = iy * in.nx + ix;
      const std::uint32_t bits = in.mask != nullptr ? in.mask[o] : 0u;
      const bool good = (bits & rules.unusable) == 0;
      put(out, i, good ? in.data[o] : T(0), good && in.variance != nullptr ? in.variance[o] : T(0), bits);
      continue;
    }
    V wx = c[degree], wy = c[degree];
    for (int d = degree - 1; d >= 0; --d) {
      wx = wx * ux + c[d];
      wy = wy * uy + c[d];
    }
    const bool fits = left >= 0 && left + Lanes <= in.nx && low >= 0 && low + Taps <= in.ny;
    if (fits && (in.clean == nullptr || in.clean[iy * in.nx + ix] != 0)) {
      const T* corner = in.data + low * in.nx + left;
      V sum = {};
      for (int j = 0; j < Taps; ++j) {
        V row;
        load(row, corner + j * in.nx);
        sum += row * wy[j];
      }
      sum *= wx;
      out.data[i] = sum_lanes<T, Lanes>(sum);
      if (out.variance != nullptr) {
        const T* corner_v = in.variance + low * in.nx + left;
        V sum_v = {};
        for (int j = 0; j < Taps; ++j) {
          V row;
          load(row, corner_v + j * in.nx);
          sum_v += row * (wy[j] * wy[j]);
        }
        sum_v *= wx * wx;
        out.variance[i] = sum_lanes<T, Lanes>(sum_v);
      }
      out.mask[i] = 0;
      continue;
    }
    T ax[Lanes], ay[Lanes];
    std::memcpy(ax, &wx, sizeof(V));
    std::memcpy(ay, &wy, sizeof(V));
    const bool inside = x >= -0.5 && x <= double(in.nx) - 0.5 && y >= -0.5 && y <= double(in.ny) - 0.5;
    interpolate_masked(in, ax, ay, Taps, left, low, inside, std::ptrdiff_t(std::floor(x + 0.5)),
                       std::ptrdiff_t(std::floor(y + 0.5)), rules, out, i);
  }
}

template <class T>
SKYLOOM_INLINE void interpolate_body(const Image<T>& in, const double* coefficients, int degree, int taps,
                                     const MaskRules& rules, const Samples<T>& out) {
  switch (taps) {
    case 2: return interpolate_taps<T, 2>(in, coefficients, degree, rules, out);
    case 4: return interpolate_taps<T, 4>(in, coefficients, degree, rules, out);
    case 6: return interpolate_taps<T, 6>(in, coefficients, degree, rules, out);
    default: return interpolate_taps<T, 8>(in, coefficients, degree, rules, out);
  }
}

SKYLOOM_INLINE void interpolate_f32_body(const Image<float>& in, const double* coefficients, int degree, int taps,
                                         const MaskRules& rules, const Samples<float>& out) {
  interpolate_body<float>(in, coefficients, degree, taps, rules, out);
}
SKYLOOM_INLINE void interpolate_f64_body(const Image<double>& in, const double* coefficients, int degree, int taps,
                                         const MaskRules& rules, const Samples<double>& out) {
  interpolate_body<double>(in, coefficients, degree, taps, rules, out);
}

SKYLOOM_INLINE void clean_windows_rows_body(const std::uint32_t* mask, std::ptrdiff_t ny, std::ptrdiff_t nx, int taps,
                                       std::ptrdiff_t row_start, std::ptrdiff_t row_stop, std::uint8_t* clean,
                                       std::uint32_t* column) {
  // column[half .. half + nx): OR of the rows of the window, with zeros on both sides
  const int before = taps / 2 - 1, after = taps / 2;
  for (std::ptrdiff_t y = row_start; y < row_stop; ++y) {
    for (std::ptrdiff_t x = 0; x < nx; ++x) column[before + x] = 0;
    for (std::ptrdiff_t j = y - before; j <= y + after; ++j) {
      if (j < 0 || j >= ny) continue;
      const std::uint32_t* row = mask + j * nx;
      for (std::ptrdiff_t x = 0; x < nx; ++x) column[before + x] |= row[x];
    }
    std::uint8_t* result = clean + y * nx;
    for (std::ptrdiff_t x = 0; x < nx; ++x) {
      std::uint32_t bits = 0;
      for (int k = 0; k < taps; ++k) bits |= column[x + k];
      result[x] = bits == 0;
    }
  }
}

SKYLOOM_DISPATCH(void, clean_windows_rows,
                 (const std::uint32_t* mask, std::ptrdiff_t ny, std::ptrdiff_t nx, int taps, std::ptrdiff_t row_start,
                  std::ptrdiff_t row_stop, std::uint8_t* clean, std::uint32_t* column),
                 (mask, ny, nx, taps, row_start, row_stop, clean, column))

}  // namespace

SKYLOOM_DISPATCH(void, interpolate_f32,
                 (const Image<float>& in, const double* coefficients, int degree, int taps, const MaskRules& rules,
                  const Samples<float>& out),
                 (in, coefficients, degree, taps, rules, out))
SKYLOOM_DISPATCH(void, interpolate_f64,
                 (const Image<double>& in, const double* coefficients, int degree, int taps, const MaskRules& rules,
                  const Samples<double>& out),
                 (in, coefficients, degree, taps, rules, out))

void clean_windows(const std::uint32_t* mask, std::ptrdiff_t ny, std::ptrdiff_t nx, int taps, std::ptrdiff_t row_start,
                   std::ptrdiff_t row_stop, std::uint8_t* clean) {
  std::vector<std::uint32_t> column(std::size_t(nx + taps), 0u);
  clean_windows_rows(mask, ny, nx, taps, row_start, row_stop, clean, column.data());
}

}  // namespace skyloom

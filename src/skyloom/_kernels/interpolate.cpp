#include "interpolate.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

// A weight below this fraction of the sum of |weights| is rounding of the polynomials: it loses and marks nothing.
constexpr double kNegligible = 1e-6;

// Vectors of 32 bytes: one (float) or two (double) hold the taps of a row, and lanes beyond the taps have weight 0.
// Sums over lanes are done in one fixed order, so that every instruction set gives the same bits.
template <class T>
struct Lanes {
  static constexpr int kWidth = 32 / int(sizeof(T));
  typedef T Vector __attribute__((vector_size(32)));
};

template <class V, class T>
SKYLOOM_INLINE void load(V& v, const T* p) {
  std::memcpy(&v, p, sizeof(V));
}

template <class T, class V>
SKYLOOM_INLINE T sum_lanes(const V& v) {
  if constexpr (sizeof(T) == 4)
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

// sum_jk wy[j] wx[k] corner[j, k] over the taps, with Parts vectors to a row.
template <class T, int Taps, int Parts>
SKYLOOM_INLINE T weighted_sum(const T* corner, std::ptrdiff_t stride, const T* wx, const T* wy) {
  using V = typename Lanes<T>::Vector;
  V total = {};
  for (int part = 0; part < Parts; ++part) {
    V columns = {}, row, w;
    for (int j = 0; j < Taps; ++j) {
      load(row, corner + j * stride + part * Lanes<T>::kWidth);
      columns += row * wy[j];
    }
    load(w, wx + part * Lanes<T>::kWidth);
    total += columns * w;
  }
  return sum_lanes<T>(total);
}

template <class T, int Taps>
SKYLOOM_INLINE void interpolate_taps(const Image<T>& in, const double* coefficients, int degree, const MaskRules& rules,
                                     const Samples<T>& out) {
  using V = typename Lanes<T>::Vector;
  constexpr int Width = Lanes<T>::kWidth, Parts = (Taps + Width - 1) / Width, Padded = Parts * Width;
  constexpr int Half = Taps / 2;
  constexpr int Group = 4;  // positions whose polynomials are evaluated together, to fill the pipeline
  T c[kMaxDegree + 1][Padded] = {};
  for (int d = 0; d <= degree; ++d)
    for (int k = 0; k < Taps; ++k) c[d][k] = T(coefficients[d * Taps + k]);
  const double end_x = double(in.nx) + Half, end_y = double(in.ny) + Half;
  for (std::ptrdiff_t first = 0; first < out.n; first += Group) {
    const int group = out.n - first < Group ? int(out.n - first) : Group;
    double position[2 * Group] = {}, corner[2 * Group];
    T u[2 * Group], weight[2 * Group][Padded];
    bool near[Group] = {};
    for (int g = 0; g < group; ++g) {
      const double x = out.xy[2 * (first + g)], y = out.xy[2 * (first + g) + 1];
      // false for NaN, and for positions so far outside that no tap can reach the image
      near[g] = x > -Half && x < end_x && y > -Half && y < end_y;
      position[2 * g] = near[g] ? x : 0.0;
      position[2 * g + 1] = near[g] ? y : 0.0;
    }
    for (int q = 0; q < 2 * Group; ++q) {
      corner[q] = std::floor(position[q]);
      u[q] = T(2 * (position[q] - corner[q]) - 1);
    }
    for (int part = 0; part < Parts; ++part) {
      V w[2 * Group], row;
      load(row, c[degree] + part * Width);
      for (int q = 0; q < 2 * Group; ++q) w[q] = row;
      for (int d = degree - 1; d >= 0; --d) {
        load(row, c[d] + part * Width);
        for (int q = 0; q < 2 * Group; ++q) w[q] = w[q] * u[q] + row;
      }
      for (int q = 0; q < 2 * Group; ++q) std::memcpy(weight[q] + part * Width, &w[q], sizeof(V));
    }
    for (int g = 0; g < group; ++g) {
      const std::ptrdiff_t i = first + g;
      if (!near[g]) {
        put(out, i, T(0), T(0), rules.no_data);
        continue;
      }
      const double x = position[2 * g], y = position[2 * g + 1];
      const std::ptrdiff_t ix = std::ptrdiff_t(corner[2 * g]), iy = std::ptrdiff_t(corner[2 * g + 1]);
      const std::ptrdiff_t left = ix - Half + 1, low = iy - Half + 1;
      const T* wx = weight[2 * g];
      const T* wy = weight[2 * g + 1];
      if (x == double(ix) && y == double(iy) && ix >= 0 && ix < in.nx && iy >= 0 && iy < in.ny) {
        const std::ptrdiff_t o = iy * in.nx + ix;  // a pixel centre: nothing to interpolate
        const std::uint32_t bits = in.mask != nullptr ? in.mask[o] : 0u;
        const bool good = (bits & rules.unusable) == 0;
        put(out, i, good ? in.data[o] : T(0), good && in.variance != nullptr ? in.variance[o] : T(0), bits);
        continue;
      }
      const bool fits = left >= 0 && left + Padded <= in.nx && low >= 0 && low + Taps <= in.ny;
      if (fits && (in.clean == nullptr || in.clean[iy * in.nx + ix] != 0)) {
        const std::ptrdiff_t o = low * in.nx + left;
        out.data[i] = weighted_sum<T, Taps, Parts>(in.data + o, in.nx, wx, wy);
        if (out.variance != nullptr) {
          T squares[2][Padded];
          for (int k = 0; k < Padded; ++k) {
            squares[0][k] = wx[k] * wx[k];
            squares[1][k] = wy[k] * wy[k];
          }
          out.variance[i] = weighted_sum<T, Taps, Parts>(in.variance + o, in.nx, squares[0], squares[1]);
        }
        out.mask[i] = 0;
        continue;
      }
      const bool inside = x >= -0.5 && x <= double(in.nx) - 0.5 && y >= -0.5 && y <= double(in.ny) - 0.5;
      interpolate_masked(in, wx, wy, Taps, left, low, inside, std::ptrdiff_t(std::floor(x + 0.5)),
                         std::ptrdiff_t(std::floor(y + 0.5)), rules, out, i);
    }
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

#include "interpolate.hpp"

#include <cmath>
#include <vector>

#include "isa.hpp"
#include "stencil.hpp"

namespace skyloom {
namespace {

// A weight below this fraction of the sum of |weights| is rounding of the polynomials: it loses and marks nothing.
constexpr double kNegligible = 1e-6;

template <class T>
SKYLOOM_INLINE void put(const Samples<T>& out, std::ptrdiff_t i, T data, T variance, std::uint32_t mask) {
  out.data[i] = data;
  if (out.variance != nullptr) out.variance[i] = variance;
  out.mask[i] = mask;
}

// The general case: the stencil holds pixels that are masked or outside of the image.
template <class T, int Taps>
void interpolate_masked(const Image<T>& in, const Group<T, Taps>& group, int g, const double* xy, const MaskRules& rules,
                        const Samples<T>& out, std::ptrdiff_t i) {
  const std::ptrdiff_t left = group.base[g][0] - Taps / 2 + 1, low = group.base[g][1] - Taps / 2 + 1;
  const std::ptrdiff_t nearest_x = std::ptrdiff_t(std::floor(xy[0] + 0.5));
  const std::ptrdiff_t nearest_y = std::ptrdiff_t(std::floor(xy[1] + 0.5));
  const bool inside =
      xy[0] >= -0.5 && xy[0] <= double(in.nx) - 0.5 && xy[1] >= -0.5 && xy[1] <= double(in.ny) - 0.5;
  double wx[Taps], wy[Taps];
  for (int k = 0; k < Taps; ++k) {
    wx[k] = double(group.wx[k][g]);
    wy[k] = double(group.wy[k][g]);
  }
  double all = 0, lost = 0, weight = 0, sum = 0, sum_variance = 0;
  std::uint32_t culprits = 0, remarks = 0;
  bool nearest_lost = false;
  const std::uint32_t beyond = inside ? rules.edge : rules.no_data;
  for (int j = 0; j < Taps; ++j)
    for (int k = 0; k < Taps; ++k) all += std::abs(wx[k] * wy[j]);
  for (int j = 0; j < Taps; ++j) {
    const std::ptrdiff_t y = low + j;
    for (int k = 0; k < Taps; ++k) {
      const std::ptrdiff_t x = left + k;
      const double w = wx[k] * wy[j];
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
  using G = Group<T, Taps>;
  constexpr int Width = G::kWidth, Half = Taps / 2;
  const TapPolynomials<T, Taps> polynomials(coefficients, degree);
  const double end_x = double(in.nx) + Half, end_y = double(in.ny) + Half;
  // a stencil fits if all its pixels are in the image, and the rest of its last vector is within the array
  const std::ptrdiff_t last_corner = in.ny * in.nx - (Taps - 1) * in.nx - G::kReach;
  G group;
  for (std::ptrdiff_t start = 0; start < out.n; start += Width) {
    const int count = out.n - start < Width ? int(out.n - start) : Width;
    double xy[2 * Width];
    bool near[Width], clean[Width];
    std::ptrdiff_t offset[Width], some_offset = -1;
    for (int g = 0; g < Width; ++g) {
      const double* p = out.xy + 2 * (start + (g < count ? g : 0));
      // false for NaN, and for positions so far outside that no tap can reach the image
      near[g] = p[0] > -Half && p[0] < end_x && p[1] > -Half && p[1] < end_y;
      xy[2 * g] = near[g] ? p[0] : 0.0;
      xy[2 * g + 1] = near[g] ? p[1] : 0.0;
    }
    group.locate(xy, polynomials);
    bool all_clean = count == Width;
    for (int g = 0; g < Width; ++g) {
      const std::ptrdiff_t x = group.base[g][0], y = group.base[g][1], left = x - Half + 1, low = y - Half + 1;
      offset[g] = low * in.nx + left;
      clean[g] = near[g] && left >= 0 && left + Taps <= in.nx && low >= 0 && low + Taps <= in.ny &&
                 offset[g] <= last_corner && (in.clean == nullptr || in.clean[y * in.nx + x] != 0);
      if (clean[g]) some_offset = offset[g];
      all_clean = all_clean && clean[g];
    }
    typename G::V value = {}, noise = {};
    if (some_offset >= 0) {
      const T* corner[Width];
      for (int g = 0; g < Width; ++g) corner[g] = in.data + (clean[g] ? offset[g] : some_offset);
      value = group.mean(corner, in.nx);
      if (out.variance != nullptr) {
        for (int g = 0; g < Width; ++g) corner[g] = in.variance + (clean[g] ? offset[g] : some_offset);
        noise = group.squares(corner, in.nx);
      }
    }
    if (all_clean) {
      store(out.data + start, value);
      if (out.variance != nullptr) store(out.variance + start, noise);
      for (int g = 0; g < Width; ++g) out.mask[start + g] = 0;
      continue;
    }
    for (int g = 0; g < count; ++g) {
      if (clean[g])
        put(out, start + g, value[g], noise[g], 0u);
      else if (near[g])
        interpolate_masked(in, group, g, xy + 2 * g, rules, out, start + g);
      else
        put(out, start + g, T(0), T(0), rules.no_data);
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
    case 8: return interpolate_taps<T, 8>(in, coefficients, degree, rules, out);
    default: return interpolate_taps<T, 10>(in, coefficients, degree, rules, out);
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

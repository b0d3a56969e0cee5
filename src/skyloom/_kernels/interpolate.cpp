#include "interpolate.hpp"

#include <algorithm>
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

// One position whose stencil holds pixels that are masked or outside of the image.
template <class T, int Taps>
void interpolate_masked(const Image<T>& in, const Group<T, Taps>& group, int g, const double* xy,
                        const MaskRules& rules, const Samples<T>& out, std::ptrdiff_t i) {
  const std::ptrdiff_t left = group.base[g][0] - group.kBefore, low = group.base[g][1] - group.kBefore;
  const std::ptrdiff_t nearest_x = std::ptrdiff_t(std::floor(xy[0] + 0.5)) - left;
  const std::ptrdiff_t nearest_y = std::ptrdiff_t(std::floor(xy[1] + 0.5)) - low;
  const bool inside =
      xy[0] >= -0.5 && xy[0] <= double(in.nx) - 0.5 && xy[1] >= -0.5 && xy[1] <= double(in.ny) - 0.5;
  const std::uint32_t beyond = inside ? rules.edge : rules.no_data;
  double wx[Taps], wy[Taps], all_x = 0, all_y = 0;
  for (int k = 0; k < Taps; ++k) {
    wx[k] = double(group.wx[k][g]);
    wy[k] = double(group.wy[k][g]);
    all_x += std::abs(wx[k]);
    all_y += std::abs(wy[k]);
  }
  const double all = all_x * all_y, negligible = kNegligible * all;
  double lost = 0, weight = 0, sum = 0, sum_variance = 0;
  std::uint32_t culprits = 0, remarks = 0;
  bool nearest_lost = false;
  for (int j = 0; j < Taps; ++j) {
    const std::ptrdiff_t y = std::clamp(low + j, std::ptrdiff_t(0), in.ny - 1);
    double row_lost = 0, row_weight = 0, row_sum = 0, row_variance = 0;  // rows do not wait for one another
    for (int k = 0; k < Taps; ++k) {  // without branches: which pixels are bad cannot be predicted
      const std::ptrdiff_t x = std::clamp(left + k, std::ptrdiff_t(0), in.nx - 1), o = y * in.nx + x;
      const bool outside = (x != left + k) | (y != low + j);
      const std::uint32_t bits = outside ? beyond : in.mask != nullptr ? in.mask[o] : 0u;
      const bool bad = outside | ((bits & rules.unusable) != 0);
      const double w = wx[k] * wy[j], size = std::abs(w), used = bad ? 0.0 : w;
      const std::uint32_t marks = size > negligible ? bits : 0u;
      row_lost += bad && size > negligible ? size : 0.0;
      culprits |= bad ? marks : 0u;
      remarks |= bad ? 0u : marks;
      nearest_lost |= bad & (k == nearest_x) & (j == nearest_y) & (size > negligible);
      row_weight += used;
      row_sum += used * double(in.data[o]);
      if (in.variance != nullptr) row_variance += used * used * double(in.variance[o]);
    }
    lost += row_lost;
    weight += row_weight;
    sum += row_sum;
    sum_variance += row_variance;
  }
  const double factor = out.factor == nullptr ? 1.0 : out.factor[i];
  const bool known = std::isfinite(factor);
  if (!known || nearest_lost || lost > rules.max_lost * all || !(weight > 0.1)) {
    put(out, i, T(0), T(0), culprits | remarks | (known ? 0u : rules.no_data));
    return;
  }
  const double scale = factor / weight;
  put(out, i, T(sum * scale), T(sum_variance * scale * scale), remarks | (lost > 0 ? rules.spread : 0u));
}

template <class T>
struct GroupValues {
  typename Lanes<T>::Vector data = {}, variance = {}, factor = {};
};

// A group whose stencils all lie in the image, whatever their mask. True if all of them are clean.
template <class T, int Taps>
SKYLOOM_INLINE bool interpolate_group(const Image<T>& in, const Group<T, Taps>& group, const double* factor,
                                      GroupValues<T>& values, bool (&clean)[Lanes<T>::kWidth]) {
  std::ptrdiff_t corners[group.kWidth];
  for (int g = 0; g < group.kWidth; ++g) corners[g] = group.corner(g, in.nx);
  group.mean(in.data, corners, in.nx, values.data);
  if (in.variance != nullptr) group.squares(in.variance, corners, in.nx, values.variance);
  bool all_clean = true;
  for (int g = 0; g < group.kWidth; ++g)
    all_clean &= clean[g] = in.clean == nullptr || in.clean[corners[g] + group.kBefore * (in.nx + 1)] != 0;
  if (factor == nullptr) return all_clean;
  for (int g = 0; g < group.kWidth; ++g) values.factor[g] = T(factor[g]);
  values.data *= values.factor;
  if (in.variance != nullptr) values.variance *= values.factor * values.factor;
  for (int g = 0; g < group.kWidth; ++g) all_clean &= clean[g] &= values.factor[g] - values.factor[g] == 0;
  return all_clean;
}

// A group of which some stencils are not in the image: those one by one, all others as above, so that no value depends
// on the other positions of its group.
template <class T, int Taps>
void interpolate_mixed_group(const Image<T>& in, const TapPolynomials<T, Taps>& polynomials,
                             const typename Group<T, Taps>::Interior& interior, const MaskRules& rules,
                             const Samples<T>& out, std::ptrdiff_t start) {
  constexpr int Width = Group<T, Taps>::kWidth, Half = Taps / 2;
  const int count = int(std::min(std::ptrdiff_t(Width), out.n - start));
  const double end_x = double(in.nx) + Half, end_y = double(in.ny) + Half;
  const double* xy = out.xy + 2 * start;
  double chosen[2 * Width], position[2 * Width] = {}, factor[Width] = {};
  bool clean[Width] = {}, near[Width] = {};
  GroupValues<T> values;
  if (out.factor != nullptr) std::copy_n(out.factor + start, count, factor);
  const unsigned held = interior.choose(xy, count, chosen);
  Group<T, Taps> group;
  if (held != 0) {
    group.locate(chosen, polynomials);
    interpolate_group(in, group, out.factor == nullptr ? nullptr : factor, values, clean);
  }
  for (int g = 0; g < count; ++g) {
    clean[g] = clean[g] && (held >> g & 1) != 0;
    // false for NaN, and for positions so far outside that no tap can reach the image
    near[g] = xy[2 * g] > -Half && xy[2 * g] < end_x && xy[2 * g + 1] > -Half && xy[2 * g + 1] < end_y;
    if (near[g]) std::copy_n(xy + 2 * g, 2, position + 2 * g);
  }
  group.locate(position, polynomials);
  for (int g = 0; g < count; ++g)
    if (clean[g])
      put(out, start + g, values.data[g], values.variance[g], 0u);
    else if (near[g])
      interpolate_masked(in, group, g, position + 2 * g, rules, out, start + g);
    else
      put(out, start + g, T(0), T(0), rules.no_data);
}

template <class T, int Taps>
SKYLOOM_INLINE void interpolate_taps(const Image<T>& in, const double* coefficients, int degree, const MaskRules& rules,
                                     const Samples<T>& out) {
  using G = Group<T, Taps>;
  const TapPolynomials<T, Taps> polynomials(coefficients, degree);
  const typename G::Interior interior(in.ny, in.nx);
  for (std::ptrdiff_t start = 0; start < out.n; start += G::kWidth) {
    const double* xy = out.xy + 2 * start;
    if (start + G::kWidth <= out.n && interior.holds(xy)) {
      G group;
      group.locate(xy, polynomials);
      GroupValues<T> values;
      bool clean[G::kWidth];
      const double* factor = out.factor == nullptr ? nullptr : out.factor + start;
      const bool all_clean = interpolate_group(in, group, factor, values, clean);
      store(out.data + start, values.data);
      if (out.variance != nullptr) store(out.variance + start, values.variance);
      std::fill_n(out.mask + start, G::kWidth, 0u);
      if (all_clean) continue;
      for (int g = 0; g < G::kWidth; ++g)
        if (!clean[g]) interpolate_masked(in, group, g, xy + 2 * g, rules, out, start + g);
    } else {
      interpolate_mixed_group(in, polynomials, interior, rules, out, start);
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
                                       std::uint32_t* __restrict column, std::uint32_t* __restrict window) {
  // column[before .. before + nx): OR of the rows of the window, with zeros on both sides
  const int before = taps / 2 - 1, after = taps / 2;
  for (std::ptrdiff_t y = row_start; y < row_stop; ++y) {
    for (std::ptrdiff_t x = 0; x < nx; ++x) column[before + x] = 0;
    for (std::ptrdiff_t j = y - before; j <= y + after; ++j) {
      if (j < 0 || j >= ny) continue;
      const std::uint32_t* row = mask + j * nx;
      for (std::ptrdiff_t x = 0; x < nx; ++x) column[before + x] |= row[x];
    }
    std::uint8_t* result = clean + y * nx;
    for (std::ptrdiff_t x = 0; x < nx; ++x) window[x] = column[x];
    for (int k = 1; k < taps; ++k)
      for (std::ptrdiff_t x = 0; x < nx; ++x) window[x] |= column[x + k];
    for (std::ptrdiff_t x = 0; x < nx; ++x) result[x] = window[x] == 0;
  }
}

SKYLOOM_DISPATCH(void, clean_windows_rows,
                 (const std::uint32_t* mask, std::ptrdiff_t ny, std::ptrdiff_t nx, int taps, std::ptrdiff_t row_start,
                  std::ptrdiff_t row_stop, std::uint8_t* clean, std::uint32_t* __restrict column,
                  std::uint32_t* __restrict window),
                 (mask, ny, nx, taps, row_start, row_stop, clean, column, window))

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
  std::vector<std::uint32_t> column(std::size_t(nx + taps), 0u), window(static_cast<std::size_t>(nx));
  clean_windows_rows(mask, ny, nx, taps, row_start, row_stop, clean, column.data(), window.data());
}

}  // namespace skyloom

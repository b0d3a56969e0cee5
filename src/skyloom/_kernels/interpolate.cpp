#include "interpolate.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "isa.hpp"
#include "stencil.hpp"

namespace skyloom {
namespace {

// A weight below this fraction of the sum of |weights| is rounding of the polynomials: it loses and marks nothing.
constexpr double kNegligible = 1e-6;

// Taps of the cardinal splines that stand for a spline in variances and masks.
constexpr int kSplineTaps = 10;

template <class T>
SKYLOOM_INLINE void put(const Samples<T>& out, std::ptrdiff_t i, T data, T variance, std::uint32_t mask,
                        float coverage) {
  out.data[i] = data;
  if (out.variance != nullptr) out.variance[i] = variance;
  out.mask[i] = mask;
  if (out.coverage != nullptr) out.coverage[i] = coverage;
}

// The pixels under the stencils of one position: `width` of each row are readable, all rows `stride` apart.
template <class T>
struct Footprint {
  const T* data;
  const T* variance;  // or null
  const std::uint32_t* mask;
  std::ptrdiff_t stride;
};

// A copy of the pixels under a stencil, for positions near the border: what is outside has the bits `beyond`.
template <class T, int Taps>
struct PaddedFootprint {
  static constexpr int kWidth = Group<T, Taps>::kReach;
  T data[Taps * kWidth] = {}, variance[Taps * kWidth] = {};
  std::uint32_t mask[Taps * kWidth] = {};

  PaddedFootprint(const Image<T>& in, std::ptrdiff_t left, std::ptrdiff_t low, std::uint32_t beyond) {
    for (int j = 0; j < Taps; ++j)
      for (int k = 0; k < Taps; ++k) {
        const std::ptrdiff_t x = left + k, y = low + j, o = y * in.nx + x, to = j * kWidth + k;
        if (x < 0 || x >= in.nx || y < 0 || y >= in.ny) {
          mask[to] = beyond;
          continue;
        }
        data[to] = in.data[o];
        if (in.variance != nullptr) variance[to] = in.variance[o];
        if (in.mask != nullptr) mask[to] = in.mask[o];
      }
  }
  Footprint<T> view() const { return {data, variance, mask, kWidth}; }
};

// Four pixels at a time, in double precision; comparisons of doubles and of integers as vectors of -1 (true) and 0.
typedef double Quad __attribute__((vector_size(32)));
typedef long long QuadFlags __attribute__((vector_size(32)));
typedef std::uint32_t QuadBits __attribute__((vector_size(16)));

SKYLOOM_INLINE double total(const Quad& v) { return (v[0] + v[1]) + (v[2] + v[3]); }
SKYLOOM_INLINE std::uint32_t any_bits(const QuadBits& v) { return v[0] | v[1] | v[2] | v[3]; }
SKYLOOM_INLINE Quad where(const QuadFlags& flags, const Quad& v) { return Quad(QuadFlags(v) & flags); }

// The value of a spline at one position, given the pixel at (floor(x), floor(y)); nothing if it reaches outside.
template <int Degree, class T>
std::optional<double> spline_value(const Image<T>& in, const int (&base)[2], const double* xy) {
  constexpr int Taps = Degree + 1;
  const std::ptrdiff_t left = base[0] - Degree / 2, low = base[1] - Degree / 2;
  if (left < 0 || low < 0 || left + Taps > in.nx || low + Taps > in.ny) return std::nullopt;
  double wx[Taps], wy[Taps], sum = 0;
  const BSpline<double, Degree, double> kernel;
  kernel.weights(xy[0] - base[0], wx);
  kernel.weights(xy[1] - base[1], wy);
  for (int j = 0; j < Taps; ++j)
    for (int k = 0; k < Taps; ++k) sum += wy[j] * wx[k] * double(in.spline[(low + j) * in.nx + left + k]);
  return sum;
}

// One position whose stencil holds pixels that are masked or outside of the image.
template <class T, int Taps>
SKYLOOM_INLINE void interpolate_masked(const Image<T>& in, const Group<T, Taps>& group, int g, const double* xy,
                                       const MaskRules& rules, const Samples<T>& out, std::ptrdiff_t i) {
  typedef T Values __attribute__((vector_size(4 * sizeof(T))));
  constexpr int Parts = Group<T, Taps>::kReach / 4;
  const std::ptrdiff_t left = group.base[g][0] - group.kBefore, low = group.base[g][1] - group.kBefore;
  const bool inside =
      xy[0] >= -0.5 && xy[0] <= double(in.nx) - 0.5 && xy[1] >= -0.5 && xy[1] <= double(in.ny) - 0.5;
  const std::uint32_t beyond = inside ? rules.edge : rules.no_data, unusable = rules.unusable | beyond;
  Quad wx[Parts] = {}, size_x[Parts] = {};
  double wy[Taps], all_x = 0, all_y = 0;
  for (int k = 0; k < Taps; ++k) {
    wx[k / 4][k % 4] = double(group.wx[k][g]);
    size_x[k / 4][k % 4] = std::abs(double(group.wx[k][g]));
    wy[k] = double(group.wy[k][g]);
    all_x += std::abs(double(group.wx[k][g]));
    all_y += std::abs(wy[k]);
  }
  const double all = all_x * all_y, negligible = kNegligible * all;

  const bool whole = in.mask != nullptr && low >= 0 && low + Taps < in.ny && left >= 0 && left + 4 * Parts <= in.nx;
  const std::ptrdiff_t corner = low * in.nx + left;
  std::optional<PaddedFootprint<T, Taps>> padded;
  Footprint<T> pixels;
  if (whole)
    pixels = {in.data + corner, in.variance == nullptr ? nullptr : in.variance + corner, in.mask + corner, in.nx};
  else
    pixels = padded.emplace(in, left, low, beyond).view();

  Quad lost = {}, weight = {}, sum = {}, sum_variance = {};
  QuadBits culprits = {}, remarks = {};
  for (int j = 0; j < Taps; ++j)
    for (int part = 0; part < Parts; ++part) {
      const std::ptrdiff_t o = j * pixels.stride + 4 * part;
      QuadBits bits;
      Values values;
      load(bits, pixels.mask + o);
      load(values, pixels.data + o);
      const Quad w = wx[part] * wy[j], size = size_x[part] * std::abs(wy[j]);
      const QuadFlags seen = size > negligible;
      const auto bad_bits = (bits & unusable) != 0;
      const QuadFlags bad = __builtin_convertvector(bad_bits, QuadFlags);
      const QuadBits marks = bits & __builtin_convertvector(seen, QuadBits);
      const Quad used = where(~bad, w);
      culprits |= marks & QuadBits(bad_bits);
      remarks |= marks & ~QuadBits(bad_bits);
      lost += where(bad & seen, size);
      weight += used;
      sum += used * __builtin_convertvector(values, Quad);
      if (pixels.variance == nullptr) continue;
      load(values, pixels.variance + o);
      sum_variance += used * used * __builtin_convertvector(values, Quad);
    }
  const int near_x = int(std::floor(xy[0] + 0.5)) - int(left), near_y = int(std::floor(xy[1] + 0.5)) - int(low);
  const bool nearest_lost = (pixels.mask[near_y * pixels.stride + near_x] & unusable) != 0 &&
                            size_x[near_x / 4][near_x % 4] * std::abs(wy[near_y]) > negligible;
  const double factor = out.factor == nullptr ? 1.0 : out.factor[i];
  const bool known = std::isfinite(factor);
  const float coverage = inside && known ? float(1 - total(lost) / all) : 0.0f;
  if (!known || nearest_lost || total(lost) > rules.max_lost * all || !(total(weight) > 0.1)) {
    put(out, i, T(0), T(0), any_bits(culprits | remarks) | (known ? 0u : rules.no_data), coverage);
    return;
  }
  const double scale = factor / total(weight);
  double value = total(sum) * scale;
  if (in.spline != nullptr && !(total(lost) > 0)) {
    const auto exact = in.spline_degree == 3 ? spline_value<3>(in, group.base[g], xy) : spline_value<5>(in, group.base[g], xy);
    value = exact ? *exact * factor : value;
  }
  put(out, i, T(value), T(total(sum_variance) * scale * scale),
      any_bits(remarks) | (total(lost) > 0 ? rules.spread : 0u), coverage);
}

template <class T>
struct GroupValues {
  typename Lanes<T>::Vector data = {}, variance = {}, factor = {};
};

// The values of a spline of some degree at a group of positions.
template <class T, int Degree>
SKYLOOM_INLINE void spline_values(const Image<T>& in, const double* xy, typename Lanes<T>::Vector& result) {
  Group<T, Degree + 1> group;
  group.locate(xy, BSpline<T, Degree>());
  std::ptrdiff_t corners[Lanes<T>::kWidth];
  for (int g = 0; g < group.kWidth; ++g) corners[g] = group.corner(g, in.nx);
  group.mean(in.spline, corners, in.nx, result);
}

// A group whose stencils all lie in the image, whatever their mask. True if all of them are clean.
template <class T, int Taps>
SKYLOOM_INLINE bool interpolate_group(const Image<T>& in, const Group<T, Taps>& group, const double* xy,
                                      const double* factor, GroupValues<T>& values, bool (&clean)[Lanes<T>::kWidth]) {
  std::ptrdiff_t corners[Lanes<T>::kWidth];
  for (int g = 0; g < group.kWidth; ++g) corners[g] = group.corner(g, in.nx);
  if (Taps < kSplineTaps || in.spline == nullptr)
    group.mean(in.data, corners, in.nx, values.data);
  else if (in.spline_degree == 3)
    spline_values<T, 3>(in, xy, values.data);
  else
    spline_values<T, 5>(in, xy, values.data);
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

// Tiles of so many columns: the pixels of the image that a tile needs, however turned, stay in the cache and on few
// pages of memory.
constexpr std::ptrdiff_t kTileColumns = 128;

// Positions of a row of a tile whose stencils are not clean: they are done after all others.
struct Leftovers {
  int count = 0;
  std::ptrdiff_t index[kTileColumns];
};

// A group of which some stencils are not in the image: all others as above, so that no value depends on the other
// positions of its group.
template <class T, int Taps>
void interpolate_mixed_group(const Image<T>& in, const TapPolynomials<T, Taps>& polynomials,
                             const typename Group<T, Taps>::Interior& interior, const MaskRules& rules,
                             const Samples<T>& out, std::ptrdiff_t start, std::ptrdiff_t stop, Leftovers& left) {
  constexpr int Width = Group<T, Taps>::kWidth, Half = Taps / 2;
  const int count = int(std::min(std::ptrdiff_t(Width), stop - start));
  const double end_x = double(in.nx) + Half, end_y = double(in.ny) + Half;
  const double* xy = out.xy + 2 * start;
  double chosen[2 * Width], factor[Width] = {};
  bool clean[Width] = {};
  GroupValues<T> values;
  if (out.factor != nullptr) std::copy_n(out.factor + start, count, factor);
  const unsigned held = interior.choose(xy, count, chosen);
  if (held != 0) {
    Group<T, Taps> group;
    group.locate(chosen, polynomials);
    interpolate_group(in, group, chosen, out.factor == nullptr ? nullptr : factor, values, clean);
  }
  for (int g = 0; g < count; ++g) {
    const double x = xy[2 * g], y = xy[2 * g + 1];
    if (clean[g] && (held >> g & 1) != 0)
      put(out, start + g, values.data[g], values.variance[g], 0u, 1.0f);
    else if (x > -Half && x < end_x && y > -Half && y < end_y)
      left.index[left.count++] = start + g;
    else  // NaN, or so far outside that no tap can reach the image
      put(out, start + g, T(0), T(0), rules.no_data, 0.0f);
  }
}

// Positions [start, stop), which lie in a row of a tile.
template <class T, int Taps>
SKYLOOM_INLINE void interpolate_run(const Image<T>& in, const TapPolynomials<T, Taps>& polynomials,
                                    const typename Group<T, Taps>::Interior& interior, const MaskRules& rules,
                                    const Samples<T>& out, std::ptrdiff_t start, std::ptrdiff_t stop) {
  using G = Group<T, Taps>;
  Leftovers left;
  for (; start < stop; start += G::kWidth) {
    const double* xy = out.xy + 2 * start;
    if (start + G::kWidth <= stop && interior.holds(xy)) {
      G group;
      group.locate(xy, polynomials);
      GroupValues<T> values;
      bool clean[G::kWidth];
      const double* factor = out.factor == nullptr ? nullptr : out.factor + start;
      const bool all_clean = interpolate_group(in, group, xy, factor, values, clean);
      store(out.data + start, values.data);
      if (out.variance != nullptr) store(out.variance + start, values.variance);
      std::fill_n(out.mask + start, G::kWidth, 0u);
      if (out.coverage != nullptr) std::fill_n(out.coverage + start, G::kWidth, 1.0f);
      if (all_clean) continue;
      for (int g = 0; g < G::kWidth; ++g)
        if (!clean[g]) left.index[left.count++] = start + g;
    } else {
      interpolate_mixed_group(in, polynomials, interior, rules, out, start, stop, left);
    }
  }
  for (int first = 0; first < left.count; first += G::kWidth) {
    const int count = std::min(G::kWidth, left.count - first);
    double xy[2 * G::kWidth] = {};
    for (int g = 0; g < count; ++g) std::copy_n(out.xy + 2 * left.index[first + g], 2, xy + 2 * g);
    G group;
    group.locate(xy, polynomials);
    for (int g = 0; g < count; ++g)
      interpolate_masked(in, group, g, xy + 2 * g, rules, out, left.index[first + g]);
  }
}

// Ask for what a run of positions reads and writes: a new row of a tile lies far from the last one in memory.
template <class T>
SKYLOOM_INLINE void prefetch(const Samples<T>& out, std::ptrdiff_t start, std::ptrdiff_t stop) {
  constexpr std::ptrdiff_t Line = 64;
  const auto ask = [&](const auto* plane, std::ptrdiff_t per_position) {
    if (plane == nullptr) return;
    const char* end = reinterpret_cast<const char*>(plane + stop * per_position);
    for (auto p = reinterpret_cast<const char*>(plane + start * per_position); p < end; p += Line) __builtin_prefetch(p);
  };
  ask(out.xy, 2);
  ask(out.factor, 1);
  ask(out.data, 1);
  ask(out.variance, 1);
  ask(out.mask, 1);
  ask(out.coverage, 1);
}

template <class T, int Taps>
SKYLOOM_INLINE void interpolate_taps(const Image<T>& in, const double* coefficients, int degree, const MaskRules& rules,
                                     const Samples<T>& out) {
  const TapPolynomials<T, Taps> polynomials(coefficients, degree);
  const typename Group<T, Taps>::Interior interior(in.ny, in.nx);
  // one plane alone is read fast enough in whole rows, which are written faster
  const bool tiled = in.variance != nullptr || in.mask != nullptr;
  const std::ptrdiff_t height = tiled ? out.n : out.columns;
  for (std::ptrdiff_t top = 0; top < out.n; top += height)
    for (std::ptrdiff_t first = 0; first < out.columns; first += kTileColumns) {
      const std::ptrdiff_t last = std::min(first + kTileColumns, out.columns);
      for (std::ptrdiff_t row = top; row < top + height; row += out.columns) {
        if (tiled && row + out.columns < out.n) prefetch(out, row + out.columns + first, row + out.columns + last);
        interpolate_run<T, Taps>(in, polynomials, interior, rules, out, row + first, row + last);
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

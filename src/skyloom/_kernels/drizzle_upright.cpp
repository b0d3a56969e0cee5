#include "drizzle_upright.hpp"

#include <bit>
#include <cmath>
#include <utility>

#include "drizzle_numbers.hpp"
#include "vectors.hpp"

namespace skyloom::drizzle {
namespace {

constexpr double kNotPlain = 1e9;  // a span that no cells have

// One register of drops. worst: the least so far, in each lane, of what is negative for a drop that is not upright.
SKYLOOM_INLINE void place_register(const Drops& d, int first, UprightDrops& t, double* __restrict areas,
                                   double* __restrict worst) {
  const double *px0 = d.x[0], *px1 = d.x[1], *px2 = d.x[2], *px3 = d.x[3];
  const double *py0 = d.y[0], *py1 = d.y[1], *py2 = d.y[2], *py3 = d.y[3];
#pragma GCC ivdep
  for (int k = first; k < first + Lanes::kWidth; ++k) {
    const double x0 = px0[k], x1 = px1[k], x2 = px2[k], x3 = px3[k];
    const double y0 = py0[k], y1 = py1[k], y2 = py2[k], y3 = py3[k];
    // the drop reaches from `low` to `high`; its sides lie within [low, left] and [right, high]
    const double low_x = smaller(x0, x3), left = larger(x0, x3), right = smaller(x1, x2), high_x = larger(x1, x2);
    const double low_y = smaller(y0, y1), bottom = larger(y0, y1), top = smaller(y2, y3), high_y = larger(y2, y3);
    const double inner_x = right - left, inner_y = top - bottom;
    const double lean_x = (high_x - low_x) - inner_x, lean_y = (high_y - low_y) - inner_y;
    const double area = 0.5 * ((x2 - x0) * (y3 - y1) - (x3 - x1) * (y2 - y0));
    const double room = smaller(smaller(low_x, low_y) + kFarCorner, kFarCorner - larger(high_x, high_y));
    const double steepness = smaller(inner_x - 2 * lean_y, inner_y - 2 * lean_x);
    worst[k - first] = smaller(worst[k - first], smaller(smaller(steepness, area - kAreaNoise), room));
    const double fx = std::floor(without_noise(low_x)), fy = std::floor(without_noise(low_y));
    const double end_x = std::ceil(high_x), end_y = std::ceil(high_y);
    const double width = end_x - fx, height = end_y - fy, span = larger(width, height);
    const bool plain = (left <= fx + 1) & (right >= end_x - 1) & (bottom <= fy + 1) & (top >= end_y - 1);
    t.span[k] = plain ? span : kNotPlain;
    t.width[k] = width;
    t.height[k] = height;
    t.line_x[k] = fx + 1;
    t.line_y[k] = fy + 1;
    areas[k] = area;
    // four slopes, and the inverse of the area, with one division
    const double dx_bottom = x1 - x0, dx_top = x2 - x3, dy_left = y3 - y0, dy_right = y2 - y1;
    const double flat = dx_bottom * dx_top, steep = dy_left * dy_right, both = flat * steep;
    const double inverse = 1.0 / (both * area), half = 0.5 * (inverse * area);
    const double half_flat = half * steep, half_steep = half * flat;
    t.inverse_area[k] = inverse * both;
    t.bottom[k] = (y1 - y0) * (half_flat * dx_top);
    t.top[k] = (y2 - y3) * (half_flat * dx_bottom);
    t.left[k] = (x3 - x0) * (half_steep * dy_right);
    t.right[k] = (x2 - x1) * (half_steep * dy_left);
  }
}

SKYLOOM_INLINE bool place_all_upright_body(const Drops& d, Lanes lanes, UprightDrops& t, double* areas) {
  alignas(64) double worst[Lanes::kWidth] = {};
  for (int k = lanes.begin; k < lanes.end; k += Lanes::kWidth) place_register(d, k, t, areas, worst);
  for (const double v : worst)
    if (v < 0) return false;
  return true;
}

template <int N, class Vector>
SKYLOOM_INLINE void share_register(const Drops& d, int k, const UprightDrops& t, const double* areas,
                                   double (*__restrict share)[kBatch]) {
  constexpr int M = N - 1;
  const auto load = [k](const double* values) { return load_vector<Vector>(values + k); };
  const Vector x0 = load(d.x[0]), y0 = load(d.y[0]), x3 = load(d.x[3]), y1 = load(d.y[1]), area = load(areas);
  const Vector half_width = 0.5 * (load(d.x[1]) - x0), half_height = 0.5 * (load(d.y[3]) - y0);
  const Vector bottom = load(t.bottom), top = load(t.top), left = load(t.left), right = load(t.right);
  const Vector columns = load(t.width), rows = load(t.height);
  Vector p[M], q[M], below_bottom[M], beside_left[M], in_x[M], in_y[M], in_xy[M * M];
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
    const Vector line = load(t.line_x) + double(i), beyond = line - x3;  // of corner 3
    p[i] = line - x0;
    below_bottom[i] = bottom * (p[i] * p[i]);
    const Vector inside = half_height * (p[i] + beyond) + top * (beyond * beyond) - below_bottom[i];
    in_x[i] = columns > double(i + 1) ? inside : area;
  }
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) {
    const Vector line = load(t.line_y) + double(j), beyond = line - y1;  // of corner 1
    q[j] = line - y0;
    beside_left[j] = left * (q[j] * q[j]);
    const Vector inside = half_width * (q[j] + beyond) + right * (beyond * beyond) - beside_left[j];
    in_y[j] = rows > double(j + 1) ? inside : area;
  }
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j)
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      const Vector inside = p[i] * q[j] - below_bottom[i] - beside_left[j];
      const Vector in_column = rows > double(j + 1) ? inside : in_x[i];
      in_xy[j * M + i] = columns > double(i + 1) ? in_column : in_y[j];
    }
  const Vector inverse = load(t.inverse_area), scale = load(t.span) <= double(N) ? inverse : inverse - inverse;
  store_shares<N>(in_x, in_y, in_xy, area, scale, scale * kAreaNoise, k, share);
}

template <int N, class Vector>
SKYLOOM_INLINE void share_lanes(const Drops& d, Lanes lanes, const UprightDrops& t, const double* areas,
                                double (*share)[kBatch]) {
  for (int k = lanes.begin; k < lanes.end; k += int(sizeof(Vector) / sizeof(double)))
    share_register<N, Vector>(d, k, t, areas, share);
}

template <int kFloats>
SKYLOOM_INLINE void share_upright_body(int n, const Drops& d, Lanes lanes, const UprightDrops& t, const double* areas,
                                       double (*share)[kBatch]) {
  typedef VectorOf<kFloats> Vector;
  switch (n) {
    case 2: share_lanes<2, Vector>(d, lanes, t, areas, share); break;
    case 3: share_lanes<3, Vector>(d, lanes, t, areas, share); break;
    case 4: share_lanes<4, Vector>(d, lanes, t, areas, share); break;
    default: share_lanes<5, Vector>(d, lanes, t, areas, share); break;
  }
}

SKYLOOM_DISPATCH(bool, place_all_upright, (const Drops& d, Lanes lanes, UprightDrops& t, double* areas),
                 (d, lanes, t, areas))

// Does it pay to look for plain drops among those like this one, which has two corners on its low and two on its high side?
// Lines between the two corners of a side make a drop wait for its like. If others lie between those of the other side at
// the same time, it spans more cells than most, and would have to wait anyway.
bool pays(double low_a, double low_b, double high_a, double high_b) {
  const double inner = smaller(high_a, high_b) - larger(low_a, low_b), outer = larger(high_a, high_b) - smaller(low_a, low_b);
  return inner > 0 && outer < kMaxSpan && outer - inner < (int(inner) == int(outer) ? 0.04 : 0.25);
}

}  // namespace

bool put_in_upright_order(Drops& d) {
  double x[4], y[4];
  for (int v = 0; v < 4; ++v) x[v] = d.x[v][0], y[v] = d.y[v][0];
  int first = 0;
  for (int v = 1; v < 4; ++v) first = x[v] + y[v] < x[first] + y[first] ? v : first;
  int right = (first + 1) % 4, up = (first + 3) % 4;
  if (x[right] - y[right] < x[up] - y[up]) std::swap(right, up);
  const int across = (first + 2) % 4;
  if (!pays(x[first], x[up], x[right], x[across]) || !pays(y[first], y[right], y[up], y[across])) return false;
  d = {{d.x[first], d.x[right], d.x[across], d.x[up]}, {d.y[first], d.y[right], d.y[across], d.y[up]}};
  return true;
}

bool place_upright(const Drops& d, Lanes lanes, UprightDrops& t, double* areas) {
  return place_all_upright(d, lanes, t, areas) &&
         4 * std::popcount(spans_up_to(kMaxSpan, lanes, t)) >= 3 * (lanes.end - lanes.begin);
}

SKYLOOM_DISPATCH_LANES(void, share_upright,
                       (int n, const Drops& d, Lanes lanes, const UprightDrops& t, const double* areas,
                        double (*share)[kBatch]),
                       (n, d, lanes, t, areas, share))

}  // namespace skyloom::drizzle

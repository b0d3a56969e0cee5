// Separable interpolation of a group of positions at once: weights of the taps, and weighted sums over an image.
//
// Along one axis a position falls between pixels b = floor(x) and b + 1, at t = x - b. The weight of tap k, which is
// pixel b - taps/2 + 1 + k, is
//
//   w_k(t) = [k = taps/2 - 1] (1 - t) + [k = taps/2] t + t (1 - t) P_k(u),   u = 2 t - 1,
//
// with polynomials P_k that sum to 0 over k and mirror each other, P_{taps-1-k}(u) = P_k(-u). So the weights sum to
// 1, and at a pixel centre all but its own are exactly 0.
//
// Positions are taken in groups, one position to a lane for the weights, and one pixel of a row to a lane for the sums;
// between the two lies a transposition. Everything is done in one fixed order, lane by lane: no result depends on the
// instruction set, on the group, or on the other positions in it.
#pragma once

#include <cstddef>
#include <cstring>

#include "vectors.hpp"

namespace skyloom {

inline constexpr int kMaxTaps = 10;
inline constexpr int kMaxDegree = 24;

// Vectors of 32 bytes: as many positions as fit into one are a group.
template <class T>
struct Lanes {
  static constexpr int kWidth = 32 / int(sizeof(T));
  typedef T Vector __attribute__((vector_size(32)));
};

template <class V, class T>
SKYLOOM_INLINE void load(V& v, const T* p) {
  std::memcpy(&v, p, sizeof(V));
}

template <class V, class T>
SKYLOOM_INLINE void fill_lanes(V& v, T value) {
  for (int i = 0; i < int(sizeof(V) / sizeof(T)); ++i) v[i] = value;
}

template <class V, class T>
SKYLOOM_INLINE void store(T* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}

// The polynomials P_k of the left half of the taps, split into even and odd powers of u.
template <class T, int Taps>
struct TapPolynomials {
  int terms;  // of each of the two, highest power first
  T even[Taps / 2][kMaxDegree / 2 + 1], odd[Taps / 2][kMaxDegree / 2 + 1];

  // coefficients: (degree + 1, Taps); row d belongs to u^d
  TapPolynomials(const double* coefficients, int degree) : terms(degree / 2 + 1) {
    for (int k = 0; k < Taps / 2; ++k)
      for (int d = 0; d < terms; ++d) {
        const int power = 2 * (terms - 1 - d);
        even[k][d] = T(coefficients[power * Taps + k]);
        odd[k][d] = power + 1 <= degree ? T(coefficients[(power + 1) * Taps + k]) : T(0);
      }
  }

  // w[k] = weights of tap k for each position of a group, at fractions t
  SKYLOOM_INLINE void weights(const typename Lanes<T>::Vector& t, typename Lanes<T>::Vector* w) const {
    using V = typename Lanes<T>::Vector;
    const V s = T(1) - t, u = t - s, square = u * u, product = t * s;
    for (int k = 0; k < Taps / 2; ++k) {
      V e, o;
      fill_lanes(e, even[k][0]);
      fill_lanes(o, odd[k][0]);
      for (int d = 1; d < terms; ++d) {
        e = e * square + even[k][d];
        o = o * square + odd[k][d];
      }
      w[k] = product * (e + o * u);
      w[Taps - 1 - k] = product * (e - o * u);
    }
    w[Taps / 2 - 1] += s;
    w[Taps / 2] += t;
  }
};

// The weights of B-splines of odd degree, of which the coefficients next to a position are multiplied: for degree 3
// (1 - t)^3 / 6, 2/3 - t^2 (2 - t) / 2 and their mirror images (Unser 1999, IEEE Signal Processing Magazine 16, 22, eq. 8).
template <class T, int Degree, class V = typename Lanes<T>::Vector>
struct BSpline {
  // the outer, the next and for degree 5 the middle weight on the left, as functions of t and s = 1 - t
  static SKYLOOM_INLINE void half(const V& t, const V& s, V* w) {
    const V t2 = t * t;
    if constexpr (Degree == 3) {
      w[0] = s * s * s * T(1.0 / 6);
      w[1] = T(2.0 / 3) - t2 * (T(1) - t * T(0.5));
    } else {
      const V t4 = t2 * t2, s2 = s * s;
      w[0] = s2 * s2 * s * T(1.0 / 120);
      w[1] = T(13.0 / 60) + t * (T(-5.0 / 12) + t * (T(1.0 / 6) + t * (T(1.0 / 6) - t * T(1.0 / 6)))) + t4 * t * T(1.0 / 24);
      w[2] = T(11.0 / 20) - t2 * T(0.5) + t4 * (T(0.25) - t * T(1.0 / 12));
    }
  }

  SKYLOOM_INLINE void weights(const V& t, V* w) const {
    constexpr int Half = (Degree + 1) / 2;
    const V s = T(1) - t;
    V right[Half];
    half(t, s, w);
    half(s, t, right);
    for (int k = 0; k < Half; ++k) w[2 * Half - 1 - k] = right[k];
  }
};

// x0 y0 x1 y1, x2 y2 x3 y3, ...  ->  x0 x1 x2 ..., y0 y1 y2 ...
typedef float FourFloats __attribute__((vector_size(16)));
SKYLOOM_INLINE void deinterleave(const FourFloats (&xy)[4], Lanes<float>::Vector& x, Lanes<float>::Vector& y) {
  const Lanes<float>::Vector a = shuffle<0, 2, 4, 6, 1, 3, 5, 7>(xy[0], xy[1]);
  const Lanes<float>::Vector b = shuffle<0, 2, 4, 6, 1, 3, 5, 7>(xy[2], xy[3]);
  x = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(a, b);
  y = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(a, b);
}

SKYLOOM_INLINE void deinterleave(const Lanes<double>::Vector (&xy)[2], Lanes<double>::Vector& x,
                                 Lanes<double>::Vector& y) {
  x = shuffle<0, 2, 4, 6>(xy[0], xy[1]);
  y = shuffle<1, 3, 5, 7>(xy[0], xy[1]);
}

// v[i][j] <-> v[j][i]
SKYLOOM_INLINE void transpose(Lanes<float>::Vector (&v)[8]) {
  using V = Lanes<float>::Vector;
  V a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = shuffle<0, 8, 1, 9, 4, 12, 5, 13>(v[i], v[i + 1]);
    a[i + 1] = shuffle<2, 10, 3, 11, 6, 14, 7, 15>(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      b[i + 2 * k] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(a[i + k], a[i + k + 2]);
      b[i + 2 * k + 1] = shuffle<2, 3, 10, 11, 6, 7, 14, 15>(a[i + k], a[i + k + 2]);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(b[i], b[i + 4]);
    v[i + 4] = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(b[i], b[i + 4]);
  }
}

SKYLOOM_INLINE void transpose(Lanes<double>::Vector (&v)[4]) {
  using V = Lanes<double>::Vector;
  V a[4];
  for (int i = 0; i < 4; i += 2) {
    a[i] = shuffle<0, 4, 2, 6>(v[i], v[i + 1]);
    a[i + 1] = shuffle<1, 5, 3, 7>(v[i], v[i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    v[i] = shuffle<0, 1, 4, 5>(a[i], a[i + 2]);
    v[i + 2] = shuffle<2, 3, 6, 7>(a[i], a[i + 2]);
  }
}

// A group of positions: where each falls, and the weights of its taps.
template <class T, int Taps>
struct Group {
  using V = typename Lanes<T>::Vector;
  using Pair = Lanes<double>::Vector;  // x and y of two positions
  static constexpr int kWidth = Lanes<T>::kWidth;
  static constexpr int kParts = (Taps + kWidth - 1) / kWidth;  // vectors that hold the taps of one row
  static constexpr int kReach = kParts * kWidth;               // pixels that are read of each row
  static constexpr int kBefore = Taps / 2 - 1;                 // taps before the pixel at floor(x)

  int base[kWidth][2];   // floor(x), floor(y)
  V wx[Taps], wy[Taps];  // [tap][position]

  // Positions whose stencils lie in an image of (ny, nx), and for which the rest of the last vector of a row does too,
  // or is the start of the next row.
  struct Interior {
    Pair low, high;
    Interior(std::ptrdiff_t ny, std::ptrdiff_t nx) {
      const double end_x = double(nx - Taps / 2), end_y = kReach <= nx ? double(ny - Taps / 2 - 1) : 0.0;
      low = Pair{kBefore, kBefore, kBefore, kBefore};
      high = Pair{end_x, end_y, end_x, end_y};
    }
    // xy: x, y of each position of a group; false for NaN
    SKYLOOM_INLINE bool holds(const double* xy) const {
      Pair p;
      load(p, xy);
      auto good = (p >= low) & (p < high);
      for (int i = 1; i < kWidth / 2; ++i) {
        load(p, xy + 4 * i);
        good &= (p >= low) & (p < high);
      }
      return (good[0] & good[1] & good[2] & good[3]) != 0;
    }
    // The same for each position, as bits. chosen: those that are held, in place of others one of them.
    unsigned choose(const double* xy, int count, double* chosen) const {
      unsigned held = 0;
      int some = 0;
      for (int g = 0; g < count; ++g)
        if (xy[2 * g] >= low[0] && xy[2 * g] < high[0] && xy[2 * g + 1] >= low[1] && xy[2 * g + 1] < high[1]) {
          held |= 1u << g;
          some = g;
        }
      for (int g = 0; g < kWidth; ++g)
        std::memcpy(chosen + 2 * g, xy + 2 * ((held >> g) & 1 ? g : some), 2 * sizeof(double));
      return held;
    }
  };

  // xy: x, y of each position, all within the range of int; kernel: has the weights of the taps
  template <class Kernel>
  SKYLOOM_INLINE void locate(const double* xy, const Kernel& kernel) {
    typedef int Four __attribute__((vector_size(16)));
    typedef T Fractions __attribute__((vector_size(4 * sizeof(T))));
    Fractions fraction[kWidth / 2];
    for (int i = 0; i < kWidth / 2; ++i) {
      Pair p;
      load(p, xy + 4 * i);
      const Four cut = __builtin_convertvector(p, Four);
      const Pair whole = __builtin_convertvector(cut, Pair);
      const Four below = cut + __builtin_convertvector(whole > p, Four);  // a true comparison is -1
      std::memcpy(&base[2 * i], &below, sizeof(below));
      fraction[i] = __builtin_convertvector(p - __builtin_convertvector(below, Pair), Fractions);
    }
    V tx, ty;
    deinterleave(fraction, tx, ty);
    kernel.weights(tx, wx);
    kernel.weights(ty, wy);
  }

  // The first pixel of the stencil of position g, as an index into an image of rows of nx pixels.
  SKYLOOM_INLINE std::ptrdiff_t corner(int g, std::ptrdiff_t nx) const {
    return (base[g][1] - kBefore) * nx + (base[g][0] - kBefore);
  }

  // sum_jk wy[j] wx[k] pixel[j, k] of each position, given the first pixel of its stencil: written as anchor + sum of
  // weight * (pixel - anchor) along each axis, because the weights sum to 1: a flat image comes out exactly, and
  // rounding is relative to the contrast, not to the level.
  SKYLOOM_INLINE void mean(const T* image, const std::ptrdiff_t (&corners)[kWidth], std::ptrdiff_t stride,
                           V& result) const {
    constexpr int Anchor = kBefore;
    T factor[Taps][kWidth];
    for (int j = 0; j < Taps; ++j) store(factor[j], wy[j]);
    V columns[kParts][kWidth];
    for (int g = 0; g < kWidth; ++g)
      for (int part = 0; part < kParts; ++part) {
        const T* p = image + corners[g] + part * kWidth;
        V anchor, row, sum = {};
        load(anchor, p + Anchor * stride);
        for (int j = 0; j < Taps; ++j) {
          if (j == Anchor) continue;
          load(row, p + j * stride);
          sum += (row - anchor) * factor[j][g];
        }
        columns[part][g] = anchor + sum;
      }
    for (int part = 0; part < kParts; ++part) transpose(columns[part]);
    const V anchor = columns[Anchor / kWidth][Anchor % kWidth];
    V sum = {};
    for (int k = 0; k < Taps; ++k)
      if (k != Anchor) sum += (columns[k / kWidth][k % kWidth] - anchor) * wx[k];
    result = anchor + sum;
  }

  // sum_jk wy[j]^2 wx[k]^2 pixel[j, k] of each position
  SKYLOOM_INLINE void squares(const T* image, const std::ptrdiff_t (&corners)[kWidth], std::ptrdiff_t stride,
                              V& result) const {
    T factor[Taps][kWidth];
    for (int j = 0; j < Taps; ++j) store(factor[j], V(wy[j] * wy[j]));
    V columns[kParts][kWidth];
    for (int g = 0; g < kWidth; ++g)
      for (int part = 0; part < kParts; ++part) {
        const T* p = image + corners[g] + part * kWidth;
        V row, sum = {};
        for (int j = 0; j < Taps; ++j) {
          load(row, p + j * stride);
          sum += row * factor[j][g];
        }
        columns[part][g] = sum;
      }
    for (int part = 0; part < kParts; ++part) transpose(columns[part]);
    V sum = {};
    for (int k = 0; k < Taps; ++k) sum += columns[k / kWidth][k % kWidth] * (wx[k] * wx[k]);
    result = sum;
  }
};

}  // namespace skyloom

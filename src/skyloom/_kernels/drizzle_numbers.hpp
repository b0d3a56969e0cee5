// Small functions for the geometry of drops. The files that include it see finite numbers only: they are compiled with
// -ffinite-math-only -fno-signed-zeros, so that minima, maxima and clamps are single instructions.
#pragma once

#include <cmath>
#include <cstring>

#include "drizzle_overlap.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {

SKYLOOM_INLINE double smaller(double a, double b) { return a < b ? a : b; }
SKYLOOM_INLINE double larger(double a, double b) { return a > b ? a : b; }
SKYLOOM_INLINE double clamp01(double t) { return smaller(larger(t, 0.0), 1.0); }

// A drop with a corner beyond is lost: whole numbers of 32 bits hold cells up to here with room to spare.
constexpr double kFarCorner = 0x1p30;

// A corner relative to its cell, as rounded, has to lie in that cell too, as drops in a queue are placed again from
// their relative corners: -1e-17 is in cell 0, as it would be 1 seen from cell -1.
SKYLOOM_INLINE double without_noise(double v) { return std::fabs(v) < 0x1p-53 ? 0.0 : v; }

// The shares of drop k, or of the vector of drops from k on: second differences of area{x < i + 1, y < j + 1}; beyond the last
// line everything is inside.
template <int N, class Number>
SKYLOOM_INLINE void store_shares(const Number* in_x, const Number* in_y, const Number* in_xy, const Number& area,
                                 const Number& scale, const Number& noise, int k, double (*__restrict share)[kBatch]) {
  constexpr int M = N - 1;
  const Number zero{};
#pragma GCC unroll 5
  for (int j = 0; j < N; ++j) {
    Number before{};
#pragma GCC unroll 5
    for (int i = 0; i < N; ++i) {
      const Number high = j < M ? (i < M ? in_xy[j * M + i] : in_y[j]) : (i < M ? in_x[i] : area);
      const Number low = j == 0 ? zero : (i < M ? in_xy[(j - 1) * M + i] : in_y[j - 1]);
      const Number strip = high - low, all = (strip - before) * scale, s = all > noise ? all : zero;
      before = strip;
      std::memcpy(share[j * N + i] + k, &s, sizeof s);
    }
  }
}

}  // namespace skyloom::drizzle

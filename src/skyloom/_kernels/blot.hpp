// Blot: an image interpolated at given positions, without weights or masks.
#pragma once

#include <cstddef>

#include "stencil.hpp"

namespace skyloom {

// How the image goes on beyond its outermost pixel centres.
enum class Border { edge, odd };  // f(-k) = f(0), or f(-k) = 2 f(0) - f(k)

template <class T>
struct BlotInput {
  const T* data;  // (ny, nx)
  std::ptrdiff_t ny, nx;
  const double* xy;  // (n, 2) positions in the image
  std::ptrdiff_t n;
};

struct BlotValues {
  double scale;  // factor on all values of the image
  double fill;   // value where there is none: outside of 0 <= x < nx, 0 <= y < ny, or where a pixel that is NaN or
                 // infinite has a weight
};

// coefficients: (degree + 1, taps), taps even and at most kMaxTaps. out: (n,)
void blot_f32(const BlotInput<float>& in, const double* coefficients, int degree, int taps, Border border,
              const BlotValues& values, float* out);
void blot_f64(const BlotInput<double>& in, const double* coefficients, int degree, int taps, Border border,
              const BlotValues& values, double* out);

// The nearest pixel, halves upwards; within the last half pixel of an axis the last one.
void blot_nearest_f32(const BlotInput<float>& in, const BlotValues& values, float* out);
void blot_nearest_f64(const BlotInput<double>& in, const BlotValues& values, double* out);

}  // namespace skyloom

// Gather interpolation: the value of an image at arbitrary positions, with variance and mask.
//
// The interpolation kernel is separable, its weights are polynomials: see stencil.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace skyloom {

// Bits of the output mask, see MaskBit in exposure.py.
struct MaskRules {
  std::uint32_t unusable;  // any of these bits: the pixel weighs nothing
  std::uint32_t no_data;   // set where the position is outside of the image
  std::uint32_t edge;      // set where the position is inside, but too much of the kernel is outside
  std::uint32_t spread;    // set where little weight was lost, and the rest was renormalised
  double max_lost;         // largest lost fraction of sum |weight| for which a pixel is still used
};

template <class T>
struct Image {
  const T* data;               // (ny, nx), finite everywhere
  const T* variance;           // (ny, nx) or null
  const std::uint32_t* mask;   // (ny, nx) or null
  const std::uint8_t* clean;   // (ny, nx) or null: 1 where the mask is 0 in the whole footprint of floor(position)
  std::ptrdiff_t ny, nx;
  // B-spline coefficients of the data, (ny, nx), and their degree, 3 or 5: the values of clean footprints of 10 taps come
  // from them. Null: from the data.
  const T* spline;
  int spline_degree;
};

template <class T>
struct Samples {
  const double* xy;      // (n, 2) positions in the image
  const double* factor;  // (n,) or null: multiplies data, and its square variances; no data where it is not finite
  std::ptrdiff_t n;
  std::ptrdiff_t columns;  // of the rows of the output that the positions make up; divides n
  T* data;               // (n,)
  T* variance;           // (n,) or null
  std::uint32_t* mask;   // (n,)
  float* coverage;       // (n,) or null: the part of sum |weight| that fell on usable pixels, 0 outside of the image
};

// coefficients: (degree + 1, taps), taps even and at most kMaxTaps.
void interpolate_f32(const Image<float>& in, const double* coefficients, int degree, int taps, const MaskRules& rules,
                     const Samples<float>& out);
void interpolate_f64(const Image<double>& in, const double* coefficients, int degree, int taps, const MaskRules& rules,
                     const Samples<double>& out);

// clean[y, x] = 1 if mask is 0 on rows y - taps/2 + 1 ... y + taps/2 and the same columns; pixels outside count as 0.
// Fills rows [row_start, row_stop).
void clean_windows(const std::uint32_t* mask, std::ptrdiff_t ny, std::ptrdiff_t nx, int taps, std::ptrdiff_t row_start,
                   std::ptrdiff_t row_stop, std::uint8_t* clean);

}  // namespace skyloom

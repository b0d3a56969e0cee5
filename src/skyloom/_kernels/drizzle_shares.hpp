// How a drop that is placed by its centre alone is shared out to the output cells: kernels that are a product of two
// one-dimensional ones. With d the distance of a cell's centre from the drop's, in output pixels, s the side of an output
// pixel in input pixels and p = pixfrac (Fruchter & Hook 2002, section 2, and its descendants):
//
//   point     1 in the cell that holds the drop's centre
//   turbo     overlap of [d - 1/2, d + 1/2] with [-h, h], over 2 h;  h = p / 2 s
//   gaussian  sqrt(e / pi) exp(-e d^2);  e = 2.3548^2 s^2 / 2 p^2, for a FWHM of p input pixels, in the cells
//             round(X - h) ... round(X + h);  h = max(2.5 p / 2.3548, 1.2) / s
//   lanczosN  sinc(u) sinc(u / N) for |u| < N;  u = s d
//
// The shares of a point or turbo drop add up to 1 (turbo: if s is the map's scale; the drop's size is taken from s).
// Those of the others do so only if they are divided by their sum, over all cells of the infinite grid; the s of a
// Lanczos kernel is then at most 1.
#pragma once

#include <cstdint>

#include "drizzle_map.hpp"

namespace skyloom::drizzle {

enum class Shape : int { point, turbo, gaussian, lanczos2, lanczos3 };

// Shares of a Lanczos kernel along one axis. With t = x - first + 1 - taps / 2, which is in [0, 1), and u = 2 t - 1, that
// of cell i is
//
//   (1 - t) end[i] + t begin[i] + t (1 - t) (even[i](u^2) + u odd[i](u^2))
//
// and that of its mirror image, cell taps - 1 - i, the same at 1 - t: exact where the drop is centred on a cell or
// between two. Highest powers first.
struct LanczosTaps {
  static constexpr int kFewest = 6, kMost = 9;  // terms
  int terms = 0;                                // 0: not to be had with so few
  bool zeros_at_ends = false;                   // the kernel is 0 at whole cells only
  double begin[8], end[8], even[8][kMost], odd[8][kMost];

  LanczosTaps() = default;
  LanczosTaps(int order, double factor, int taps);
};

struct KernelSize {
  Shape shape;
  bool normalised;   // divide the shares by their sum
  double reach;      // cells whose centre is farther than this (+ 1/2: point, turbo, gaussian) get nothing; Lanczos: taps / 2
  double factor;     // turbo: 1 / 2h; gaussian: sqrt(e / pi), or 1 if normalised; Lanczos: s, or min(s, 1)
  double exponent;   // gaussian: e
  int64_t taps;      // cells along one axis that a drop can reach
};

struct Kernel : KernelSize {
  LanczosTaps lanczos;

  Kernel(Shape shape, double pixfrac, double scale_ratio, bool normalised);
  // May a drop within the grid get lost? With the nearest cell at half a pixel along both axes, exp(-e / 2) may be too
  // small for a float32, and a Lanczos kernel may be at its zeros.
  bool vanishing() const {
    return shape == Shape::gaussian ? !normalised && exponent > 160 : shape >= Shape::lanczos2 && factor >= 2;
  }
};

constexpr int kMaxTaps = 16;  // of the vectorised paths

// Shares along one axis of the drops of a batch: share[i][k] for cell first[k] + i of drop k.
struct Shares {
  alignas(64) double before[8];  // readable, and finite
  double share[kMaxTaps][kBatch];
  alignas(64) double first[kBatch];
};

// The first cells of drops at x.
void first_cells(const Kernel& kernel, const double* x, double* first);

// Shares of drops at x, whose first cells are known. kernel.taps is at most kMaxTaps.
void find_shares(const Kernel& kernel, const double* x, Shares& shares);

// Shares of one drop of any size in the cells first ... first + kernel.taps - 1.
void find_wide_shares(const Kernel& kernel, double x, double first, double* share);

}  // namespace skyloom::drizzle

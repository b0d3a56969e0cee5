// Views of the planes that a drizzle reads and writes, and the sums that it keeps for one tile of the output.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "drizzle_map.hpp"

namespace skyloom::drizzle {

// A plane of float32 or float64 numbers with any strides (in elements). data is null for a plane that is not given.
struct Plane {
  void* data = nullptr;
  int64_t row = 0, col = 1;
  bool is_double = false;
};

template <class T>
struct IntPlane {
  T* data = nullptr;
  int64_t row = 0, col = 1;
};

// What is drizzled: scale * (data - offset). Pixels with a weight that is not finite and above 0, or with any value in
// data or squares that is not finite, count for nothing.
struct Input {
  int64_t ny = 0, nx = 0;
  Plane data, weight;
  std::vector<Plane> squares;  // planes that are averaged with squared weights: variances. One without data is all 0
  std::vector<Plane> errors;   // planes that are averaged like the data
  std::vector<Plane> roots;    // planes whose square roots are. A plane without data is known nowhere
  IntPlane<const uint32_t> dq;
  IntPlane<const uint32_t> mask;  // pixels with any of the bits `rejected` count for nothing
  uint32_t rejected = 0;
  bool inverse_weight = false;    // the weight is the inverse, as float32, of what the plane holds
  double data_scale = 1, data_offset = 0, square_scale = 1, error_scale = 1, root_scale = 1, weight_scale = 1;

  int linears() const { return int(errors.size() + roots.size()); }
};

// A pixel that counts, and whose error is not known: so large that what any cell has of it is known to be wrong.
constexpr double kUnknown = 1e300, kKnown = 1e200, kKnownSum = 1e220;

// A running mean, and its own sum of weights if some images lack it.
struct Mean {
  Plane mean, weight;
};

// Where it goes: running weighted means.
struct Output {
  int64_t ny = 0, nx = 0;
  Plane mean, weight;
  std::vector<Plane> squares;          // one for each plane of Input::squares; without data: not in this image
  std::vector<Plane> square_weights;   // sums of weights of a plane that some images lack; without data: as `weight`
  std::vector<Mean> errors;            // one for each plane of Input::errors; without weight: as `weight`
  // One for each plane of Input::roots. With e the mean of the roots of an image in a cell, V = (V W^2 + e^2 u^2) / (W + u)^2:
  // u is 1 / e^2 of the plane `reference`, or `own_weight`. W is `root_weight` for planes without a weight of their own.
  std::vector<Mean> roots;
  Plane root_weight;
  int reference = -1;
  double own_weight = 1, variance_scale = 1;  // of e^2, beside u
  IntPlane<uint32_t> dq;
  IntPlane<int32_t> context;
  int32_t context_bit = 0;
  bool fresh = false;                        // the planes hold nothing yet: they are written without being read
  bool filled = false;                       // pixels without weight hold their values already
  bool fill = false, fill_squares = false;   // set pixels without weight to these values
  double fill_value = 0, fill_square_value = 0;

  // Weights up to this are 0: float32 rounds them to it, and squares of doubles lose their digits near 2^-1022.
  double least_weight() const { return weight.is_double ? 0x1p-510 : 0x1p-150; }
  // Sums of weights stop here: beyond it they would be infinite, and the next mean not a number.
  double most_weight() const { return weight.is_double ? 0x1p510 : 0x1.fffffep127; }
};

constexpr int kMargin = 4;  // cells that a drop of the vectorised paths can stick out of a tile

// The planes of sums: two for data and weights, one for each plane of errors, roots and squares.
struct SumPlanes {
  int linear, all;  // those in proportion to shares; and with those in proportion to their squares
  explicit SumPlanes(const Input& input) : linear(2 + input.linears()), all(linear + int(input.squares.size())) {}
};

// Sums over the drops that reach one tile, in planes: with shares a, the first two hold sum(a w d) and sum(a w) of each
// cell, those up to `linear` sum(a w e) of one plane of errors each, the others sum(a^2 w^2 v) of one square plane each. A
// margin around the tile takes the cells of drops that stick out, so that nothing needs clipping. Up to 8 cells beyond
// that, 0 may be added to them.
struct Tile {
  int64_t x0, y0, nx, ny;
  int64_t stride;       // cells in a row, with margins
  SumPlanes planes;
  int64_t plane;        // cells in one of them
  double* sums;         // cell (y0, x0) of the first; its rows begin at cache lines if nx is a multiple of 8
  uint32_t* dq;         // null if not wanted
  uint8_t* positive;    // 1 where a part of the sum of weights is above 0; complete only where the sum is below 0.
                        // Null if no share is negative, or no context is wanted
};

// Memory of a tile, used for one tile after another. A tile that is not merged must be without sums, bits and marks: it is
// not cleared before its next use.
class TileMemory {
 public:
  TileMemory(int64_t nx, int64_t ny, SumPlanes planes, bool with_dq, int margin = kMargin, bool with_positive = false);
  Tile& reset(int64_t x0, int64_t y0, int64_t nx, int64_t ny);

 private:
  std::vector<double> sums_;
  std::vector<uint32_t> dq_;
  std::vector<uint8_t> positive_;
  const int64_t margin_;  // a multiple of 4
  Tile tile_;
};

// What the drops of a batch add to the planes of a tile, kBatch numbers after kBatch. 8 numbers before them and 16 behind
// them are readable, and 0.
class Values {
 public:
  explicit Values(SumPlanes planes) : memory_(size_t(8 + planes.all * kBatch + 16)) {}
  double* data() { return memory_.data() + 8; }
  const double* data() const { return memory_.data() + 8; }

 private:
  std::vector<double> memory_;
};

// Read the values of one batch. usable: 1 where the weight is above 0; where it is not, the pixel counts for nothing and its
// values are 0.
void load_batch(const Input& input, int64_t j, int64_t i0, int n, double* values, int32_t* usable,
                uint32_t* dq);

// Merge the sums of a tile into the running means, and clear the tile. reached: whether anything was added to it.
void merge_tile(const Tile& tile, bool reached, const Output& output);

}  // namespace skyloom::drizzle

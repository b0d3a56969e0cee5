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

// What is drizzled. Pixels with a weight that is not finite and above 0, or with any value that is not finite, count
// for nothing.
struct Input {
  int64_t ny = 0, nx = 0;
  Plane data, weight;
  std::vector<Plane> squares;  // planes that are averaged with squared weights: variances. One without data is all 0
  IntPlane<const uint32_t> dq;
  double data_scale = 1, square_scale = 1, weight_scale = 1;
};

// Where it goes: running weighted means.
struct Output {
  int64_t ny = 0, nx = 0;
  Plane mean, weight;
  std::vector<Plane> squares;          // one for each plane of Input::squares; without data: not in this image
  std::vector<Plane> square_weights;   // sums of weights of a plane that some images lack; without data: as `weight`
  IntPlane<uint32_t> dq;
  IntPlane<int32_t> context;
  int32_t context_bit = 0;
  bool fresh = false;                        // the planes hold nothing yet: they are written without being read
  bool fill = false, fill_squares = false;   // set pixels without weight to these values
  double fill_value = 0, fill_square_value = 0;

  // Weights up to this are 0: float32 rounds them to it, and squares of doubles lose their digits near 2^-1022.
  double least_weight() const { return weight.is_double ? 0x1p-510 : 0x1p-150; }
  // Sums of weights stop here: beyond it they would be infinite, and the next mean not a number.
  double most_weight() const { return weight.is_double ? 0x1p510 : 0x1.fffffep127; }
};

constexpr int kMargin = 4;  // cells that a drop of the vectorised paths can stick out of a tile

// Sums over the drops that reach one tile, in planes of pairs: with shares a, the first holds {sum(a w d), sum(a w)} of
// each cell, the others {sum(a^2 w^2 v), sum(a^2 w^2 v)} of two square planes each. A margin around the tile takes the
// cells of drops that stick out, so that nothing needs clipping.
struct Tile {
  int64_t x0, y0, nx, ny;
  int64_t stride;       // cells in a row, with margins
  int pairs;            // planes of pairs
  int64_t plane;        // numbers in one of them
  double* sums;         // cell (y0, x0) of the first
  uint32_t* dq;         // null if not wanted
  uint8_t* positive;    // 1 where a part of the sum of weights is above 0; complete only where the sum is below 0.
                        // Null if no share is negative, or no context is wanted
};

inline int pair_planes(std::size_t squares) { return 1 + int((squares + 1) / 2); }

// Memory of a tile, used for one tile after another.
class TileMemory {
 public:
  TileMemory(int64_t nx, int64_t ny, int pairs, bool with_dq, int margin = kMargin, bool with_positive = false);
  Tile& reset(int64_t x0, int64_t y0, int64_t nx, int64_t ny);

 private:
  std::vector<double> sums_;
  std::vector<uint32_t> dq_;
  std::vector<uint8_t> positive_;
  const int64_t margin_;
  Tile tile_;
};

// Values of one batch in pairs as in a tile, kBatch pairs after kBatch pairs. usable: 1 where the weight is above 0; where
// it is not, the pixel counts for nothing and its values are 0.
void load_batch(const Input& input, int64_t j, int64_t i0, int n, double* values, int32_t* usable,
                uint32_t* dq);

// Merge the sums of a tile into the running means.
void merge_tile(const Tile& tile, const Output& output);

}  // namespace skyloom::drizzle

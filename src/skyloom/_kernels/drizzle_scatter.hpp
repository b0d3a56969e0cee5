// Add the drops of a batch, cut into shares, to the sums of a tile.
#pragma once

#include <cstdint>

#include "drizzle_map.hpp"
#include "drizzle_planes.hpp"

namespace skyloom::drizzle {

// What drops bring with them.
struct Load {
  alignas(64) int32_t cell[kBatch];   // the first cell of each drop, in the tile
  uint32_t dq[kBatch];
  double* values;                     // see Values
};

// Add drops, one for each bit that is set, n x n cells each. share[j * n + i][k] is that of drop k in cell (i, j).
void scatter(int n, const double (*share)[kBatch], const Load& load, uint64_t drops, Tile& tile);

}  // namespace skyloom::drizzle

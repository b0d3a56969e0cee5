// Drops that begin in cells side by side, as those of an image row do on a grid that is turned a little: a cell of the
// output takes from several of them, and is written once.
#pragma once

#include <cstdint>

#include "drizzle_planes.hpp"
#include "drizzle_shares.hpp"

namespace skyloom::drizzle {

constexpr int kMaxRunTaps = 8;

// Add drops of `taps` x `taps` cells, one for each bit that is set, to the sums of a tile. goes_on: bit k tells that drop k - 1 is another
// one of them, and begins one cell before. values: see Values.
void scatter_runs(int taps, const Shares& x, const Shares& y, const int32_t* cell, const double* values, uint64_t drops,
                  uint64_t goes_on, const Tile& tile);

}  // namespace skyloom::drizzle

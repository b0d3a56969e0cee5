// The pieces of an image that reach one tile of the output, and the map's values for drops that are placed by their
// centres alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "drizzle_footprint.hpp"
#include "drizzle_planes.hpp"

namespace skyloom::drizzle {

// Where the drops of a batch fall. known: 1 where the map is finite and not too far away; elsewhere the position is 0.
struct Centres {
  alignas(64) double x[kBatch], y[kBatch];
  alignas(64) int32_t known[kBatch];
};

// The centres (i0 ... i0+n-1, j).
void read_centres(const PixelMap& map, int64_t j, int64_t i0, int n, Centres& c);

// The extent of those of them that are known, half a pixel up like all extents; false if none is.
bool known_extent(const PixelMap& map, int64_t j, int64_t i0, int n, Extent& e);

// Does a piece lie within the tile? Reaches are cut at the frame, so that its border tells nothing.
inline bool lies_within(const Reach& r, const Tile& tile) {
  return r.x0 > tile.x0 && r.x1 < tile.x0 + tile.nx && r.y0 > tile.y0 && r.y1 < tile.y0 + tile.ny;
}

// Batches that are walked over side by side, a row at a time: rows lie far apart in memory, and the processor fetches
// ahead only what is read in long pieces.
constexpr int kGroup = 8;

// Call visit(j, i0, n, reach, slot) for each piece of an input row that may reach the tile. slot: 0 ... kGroup - 1, one for
// each of the columns of pieces that are walked over side by side.
template <class Visit>
void walk_tile(const Footprint& footprint, const Tile& tile, Visit visit) {
  const auto meets = [&](const Reach& r) {
    return r.x0 < tile.x0 + tile.nx && r.x1 > tile.x0 && r.y0 < tile.y0 + tile.ny && r.y1 > tile.y0;
  };
  const int64_t batches = footprint.across();
  for (int64_t block = 0; block < footprint.block_rows(); ++block) {
    const Reach* reaches = footprint.blocks.data() + block * batches;
    const int64_t first_row = block * kBlockRows, stop = std::min(footprint.rows(), first_row + kBlockRows);
    int64_t group[kGroup];
    for (int64_t batch = 0; batch < batches;) {
      int size = 0;
      for (; batch < batches && size < kGroup; ++batch)
        if (meets(reaches[batch])) group[size++] = batch;
      for (int64_t r = first_row; r < stop; ++r)
        for (int slot = 0; slot < size; ++slot) {
          const Reach& reach = footprint.batches[footprint.batch_index(r, group[slot])];
          if (!meets(reach)) continue;
          int64_t i0;
          const int n = footprint.batch_start(group[slot], i0);
          visit(footprint.window.y0 + r, i0, n, reach, slot);
        }
    }
  }
}

}  // namespace skyloom::drizzle

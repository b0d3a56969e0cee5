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

// Call visit(j, i0, n, reach) for each piece of an input row that may reach the tile.
template <class Visit>
void walk_tile(const Footprint& footprint, const Tile& tile, Visit visit) {
  const auto meets = [&](const Reach& r) {
    return r.x0 < tile.x0 + tile.nx && r.x1 > tile.x0 && r.y0 < tile.y0 + tile.ny && r.y1 > tile.y0;
  };
  const int64_t batches = footprint.across();
  for (int64_t block = 0; block < footprint.block_rows(); ++block)
    for (int64_t batch = 0; batch < batches; ++batch) {
      if (!meets(footprint.blocks[size_t(block * batches + batch)])) continue;
      int64_t i0;
      const int n = footprint.batch_start(batch, i0);
      const int64_t stop = std::min(footprint.rows(), (block + 1) * kBlockRows);
      for (int64_t r = block * kBlockRows; r < stop; ++r) {
        const Reach& reach = footprint.batches[footprint.batch_index(r, batch)];
        if (meets(reach)) visit(footprint.window.y0 + r, i0, n, reach);
      }
    }
}

}  // namespace skyloom::drizzle

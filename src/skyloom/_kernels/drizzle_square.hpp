// The square kernel: each input pixel, shrunk to a drop of `pixfrac` of its size, is spread over the output cells in
// proportion to the exact overlap (Fruchter & Hook 2002, section 2).
#pragma once

#include "drizzle_footprint.hpp"
#include "drizzle_planes.hpp"
#include "drizzle_tiles.hpp"

namespace skyloom::drizzle {

// Drizzle and merge the tiles that the queue hands out, until there are none left. row_hits[j - window.y0] counts the
// pixels of each input row that reach the output.
void drizzle_square(const Footprint& footprint, const Input& input, const Output& output, int64_t tile_edge,
                    int32_t* row_hits, const TileQueue& queue);

}  // namespace skyloom::drizzle

// Drizzle with the kernels that are placed by a drop's centre alone: point, turbo, gaussian, Lanczos.
#pragma once

#include "drizzle_footprint.hpp"
#include "drizzle_planes.hpp"
#include "drizzle_shares.hpp"
#include "drizzle_tiles.hpp"

namespace skyloom::drizzle {

// Drizzle and merge the tiles that the queue hands out, until there are none left. row_hits[j - window.y0] counts the
// pixels of each input row that contribute to the output.
void drizzle_separable(const Kernel& kernel, const Footprint& footprint, const Input& input, const Output& output,
                       int64_t tile_edge, int32_t* row_hits, const TileQueue& queue);

}  // namespace skyloom::drizzle

// Overlap areas of drops that stand nearly upright on the output grid, as those of most pairs of images do that were
// taken with the same camera: edges 0-1 and 3-2 are flat and go right, edges 0-3 and 1-2 are steep and go up.
//
// Most of them are "plain": every line of the grid that enters the drop runs between its two flat, or its two steep edges,
// and none cuts off one corner alone. With p and q the distances of the lines x = X and y = Y from corner 0, right and up, and
// slopes a and e of the edges that meet there (dy / dx of the flat one, dx / dy of the steep one), the area of the drop
// left of X and below Y then is
//
//   p q - a p^2 / 2 - e q^2 / 2,
//
// a rectangle without its triangles below the flat and left of the steep edge (negative ones if the edge leans the other
// way). Left of X it is the trapezoid between the flat edges, below Y that between the steep ones.
#pragma once

#include "drizzle_overlap.hpp"

namespace skyloom::drizzle {

struct UprightDrops : Cells {  // the span of those that are not plain is larger than any other
  // Halves of the slopes: dy / dx of the edges 0-1, 3-2; dx / dy of the edges 0-3, 1-2.
  alignas(64) double bottom[kBatch], top[kBatch], left[kBatch], right[kBatch];
  alignas(64) double inverse_area[kBatch];
};

// Order the corners so that the first drop stands upright. False if it does not in any order, or leans so much that too many
// drops will not be plain.
bool put_in_upright_order(Drops& d);

// As `place_turned`, for drops in upright order. False if any of them is not upright, or less than three quarters are plain.
bool place_upright(const Drops& d, Lanes lanes, UprightDrops& t, double* areas);

// As `share_turned`; the shares of drops that are not plain are 0.
void share_upright(int n, const Drops& d, Lanes lanes, const UprightDrops& t, const double* areas,
                   double (*share)[kBatch]);

}  // namespace skyloom::drizzle

// Overlap areas of drops (quadrilaterals) with the cells of the output grid, by Green's theorem.
//
// For a closed polygon, area{x < X, y < Y} = -sum over edges of the integral of (X - x) dy along the piece of the edge
// that lies in {x < X, y < Y}. A straight edge a + t (b - a) is inside of x < X on one interval of t and inside of y < Y
// on another, so the piece is an interval whose ends are found with clamps instead of branches. Cell areas are second
// differences of these sums. Errors stay near 1e-15 for any direction of the edges: a t that is badly determined
// belongs to an edge that barely moves across the line.
#pragma once

#include <cstdint>

#include "drizzle_map.hpp"

namespace skyloom::drizzle {

constexpr int kMaxSpan = 5;  // the widest drop, in cells, of the vectorised paths

// Areas below this are rounding errors of the sums above, for corners within kMaxSpan cells.
constexpr double kAreaNoise = 2e-14;

// Some of the drops of a batch, side by side: [begin, end), whole registers.
struct Lanes {
  static constexpr int kWidth = 8;
  int begin = 0, end = kBatch;
};

// The fewest lanes with all drops of a batch that may reach the cells [x0, x1) x [y0, y1). All of them are finite.
Lanes lanes_near(const Drops& d, double x0, double x1, double y0, double y1);

// What a batch of drops is to the output grid.
struct Placement {
  alignas(64) double area[kBatch];                // signed; 0 where there is no proper quadrilateral
  alignas(64) int32_t x[kBatch], y[kBatch];       // the first cell that the drop reaches
  alignas(64) int32_t width[kBatch], height[kBatch];  // cells that it spans
  alignas(64) int32_t valid[kBatch];              // 1 if the drop has an area
};

// Order the corners so that the first edge of the first drop goes right and up and its second left and up, if they do in
// any order. In a smooth map that holds for the other drops too.
void put_in_turned_order(Drops& d);

// Find cells and areas of drops of any shape, and their corners relative to their first cell.
void place(const Drops& d, Corners& relative, Placement& p);

// The cells of drops, as whole numbers.
struct Cells {
  alignas(64) double line_x[kBatch], line_y[kBatch];  // behind the first
  alignas(64) double width[kBatch], height[kBatch];   // how many each drop spans
  alignas(64) double span[kBatch];                    // the larger of both
};

// The first cells, and how many there are, of some drops; the others are not valid.
void count_cells(Lanes lanes, const Cells& cells, Placement& p);

// Only the numbers of the first cells in a tile that begins at (y0, x0), with so many cells in a row.
void number_cells(const Cells& cells, double x0, double y0, double stride, int32_t* cell);

// Bit k: drop k spans at most n cells.
uint64_t spans_up_to(int n, Lanes lanes, const Cells& cells);

// What the areas of turned drops need: those whose edges go right and up, left and up, left and down, right and down.
struct TurnedDrops : Cells {
  alignas(64) double rx[4][kBatch], ry[4][kBatch];    // 1 / |dx|, 1 / |dy| of the edges
  alignas(64) double inverse_area[kBatch];
};

// The same, and the areas, for some drops in turned order. False if any of them has no area, or edges in other directions:
// then nothing in t and areas can be used.
bool place_turned(const Drops& d, Lanes lanes, TurnedDrops& t, double* areas);

// share[j * n + i][k]: the fraction of drop k in cell (i, j) of the n x n cells from its first; exactly 0 where it
// does not reach. n is 2 ... kMaxSpan. All shares of drops that span more cells are 0.
void share_turned(int n, const Drops& d, Lanes lanes, const TurnedDrops& t, double (*share)[kBatch]);

// The same for drops of any shape, which may not span more cells.
void overlap_shares(int n, const Corners& relative, const double* area, double share[][kBatch]);

// Area of one drop within x < X for each of the n + 1 abscissae 0, 1, ... n, within the rows [y, y + 1).
void areas_in_row(const double cx[4], const double cy[4], double y, int n, double* below);

}  // namespace skyloom::drizzle

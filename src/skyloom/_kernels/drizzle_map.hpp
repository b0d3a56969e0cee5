// Where the corners of a drop fall: a pixel map (output position of every input pixel's centre), interpolated. Positions
// that leave this file are half a pixel up from those in the map, so that cell (i, j) covers [i, i + 1) x [j, j + 1).
//
// Inside the image the corner at (i +- h, j +- h) is the bilinear interpolation of the four pixel centres around
// it; at the border the map is continued linearly. A pixel without a finite map value is lost itself, and only
// itself: its neighbours take their corners from the finite pixels on their other side.
#pragma once

#include <cstdint>

#include "pixmap.hpp"

namespace skyloom::drizzle {

constexpr int kBatch = 64;                   // drops that are worked on together: a piece of one input row
constexpr double kFarAway = 268435456.0;     // positions beyond 2^28 pixels count as undefined

struct PixelMap {
  const double* xy;
  int64_t ny, nx;                            // of the input image
  int64_t row, col, axis;                    // strides, in elements
  double unit;                               // output pixels per input pixel where a lone pixel tells nothing
  const MapGrid* grid = nullptr;             // instead of xy: the map is expanded piece by piece; col = 2, axis = 1
};

// Makes a piece of one row of a map readable, whether the map lies in memory or is known on a grid.
class RowPiece {
 public:
  // The position of (j, i0). Its n - 1 followers and one pixel on both sides, as far as they are in the image, lie
  // map.col apart; they are good until the next call.
  const double* read(const PixelMap& map, int64_t j, int64_t i0, int n) {
    if (map.grid == nullptr) return map.xy + j * map.row + i0 * map.col;
    const int64_t first = i0 > 0 ? i0 - 1 : 0, stop = i0 + n < map.nx ? i0 + n + 1 : map.nx;
    expand_piece(*map.grid, j, first, stop - first, positions_);
    return positions_ + 2 * (i0 - first);
  }

 private:
  alignas(64) double positions_[2 * (kBatch + 2) + MapGrid::kPadding];
};

// One row of the map for the columns of one batch, with the values interpolated half a drop to either side.
struct MapRow {
  alignas(64) double left_x[kBatch], left_y[kBatch], right_x[kBatch], right_y[kBatch];
  bool finite;                               // all values that the row needs are finite
};

// The same for drops that fill their pixels: the corners of a row of pixels are those of the next row. Holds the means of
// two neighbours, from the one before the batch on.
struct HalfRow {
  alignas(64) double x[kBatch + 8], y[kBatch + 8];
  bool finite;
};

// Corners in the order (-h,+h), (+h,+h), (+h,-h), (-h,-h) of the input pixel.
struct Corners {
  alignas(64) double x[4][kBatch], y[4][kBatch];
};

// Where the corners of the drops of a batch are found: x[v][k] for corner v of drop k.
struct Drops {
  const double *x[4], *y[4];
};

struct Extent {
  double x0, x1, y0, y1;
  void take(const Extent& e) {
    x0 = e.x0 < x0 ? e.x0 : x0;
    x1 = e.x1 > x1 ? e.x1 : x1;
    y0 = e.y0 < y0 ? e.y0 : y0;
    y1 = e.y1 > y1 ? e.y1 : y1;
  }
};

// The extent of the centres (i0-1 ... i0+n, j). False if any is not finite.
bool row_extent(const PixelMap& map, int64_t j, int64_t i0, int n, Extent& e);

// The rows j-1, j, j+1 of the map for the columns [i0, i0 + n), read once each as j moves up.
class RowWindow {
 public:
  RowWindow(const PixelMap& map, double half) : map_(map), half_(half) {}
  void start(int64_t i0, int n);             // the columns; rows that are held stay held if they are the same
  // The drops of row j; they are good until the next call. `lost[k]` is set where there is none. True if all are regular.
  bool drops(int64_t j, Drops& d, uint8_t* lost);
  // The extent of all corners of row j; false if no drop has corners.
  bool extent(int64_t j, Extent& e);

 private:
  // a full batch with neighbours on all sides, in a map of ordinary layout
  bool inside(int64_t j) const {
    return map_.col == 2 && map_.axis == 1 && n_ == kBatch && i0_ > 0 && i0_ + n_ < map_.nx && j >= 0 && j < map_.ny;
  }
  const MapRow& row(int64_t j);
  bool shared_corners(int64_t j, Drops& d);
  const HalfRow& half_row(int64_t j);
  const HalfRow& between(int64_t j);
  const PixelMap& map_;
  double half_;
  int64_t i0_ = -1;
  int n_ = 0;
  MapRow rows_[3];
  int64_t held_[3] = {-9, -9, -9};
  HalfRow halves_[3], between_[2];           // of rows j, and between rows j - 1 and j
  int64_t held_half_[3] = {-9, -9, -9}, held_between_[2] = {-9, -9};
  Corners corners_;
  RowPiece piece_;
};

// Corners of one drop from whatever finite map values are near. False if its own is not finite.
bool corners_near_gaps(const PixelMap& map, double half, int64_t j, int64_t i, double x[4], double y[4]);

}  // namespace skyloom::drizzle

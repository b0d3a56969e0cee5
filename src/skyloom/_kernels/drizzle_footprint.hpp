// Which cells of the output each piece of an image may reach: found once for each image, so that a tile of the output
// reads only what belongs to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "drizzle_map.hpp"

namespace skyloom::drizzle {

constexpr int kBlockRows = 32;  // a block is one batch wide and this many rows high

// Cells of the output, half open, cut to the frame.
struct Reach {
  int32_t x0, x1, y0, y1;
  bool empty() const { return x0 >= x1 || y0 >= y1; }
};

// The part of the input image that is used, half open.
struct Window {
  int64_t x0, x1, y0, y1;
};

// Size of the tiles of the output, in cells.
struct TileSize {
  int64_t nx, ny;
};

struct Footprint {
  PixelMap map;
  Window window;
  double half;                  // half of a drop's size, in input pixels; 0 for drops placed by their centres alone
  double margin;                // what a kernel reaches beyond the corners, or the centre, of its drop, in output pixels
  int64_t frame_ny, frame_nx;
  std::vector<Reach> batches;   // of each batch, at batch_index
  std::vector<Reach> blocks;    // of each block: [block of rows][batch]

  Footprint(const PixelMap& map, const Window& window, double half, double margin, int64_t frame_ny, int64_t frame_nx);
  int64_t across() const { return (window.x1 - window.x0 + kBatch - 1) / kBatch; }
  size_t batch_index(int64_t row, int64_t batch) const { return size_t(batch * rows() + row); }  // row - window.y0
  int64_t rows() const { return window.y1 - window.y0; }
  int64_t block_rows() const { return (rows() + kBlockRows - 1) / kBlockRows; }
  int batch_start(int64_t batch, int64_t& i0) const;  // first column; returns the number of columns
  // Find the reaches of one row of blocks, once.
  void find(int64_t block);
  // All cells that the image may reach, once every row of blocks is known.
  Reach whole() const;
  // Tiles of about edge x edge cells, and of whole pieces of kBatch (small ones: 16) along x. Batches across the border of
  // two tiles are worked on twice: the fewer, the more a tile is shaped like a batch.
  TileSize tile_size(int64_t edge) const;

 private:
  Reach reach_of(const Extent& e) const;
  void find_centres(int64_t block);
  void store(int64_t block, int64_t row, int64_t batch, const Reach& reach);
};

}  // namespace skyloom::drizzle

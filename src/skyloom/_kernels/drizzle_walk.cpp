#include "drizzle_walk.hpp"

#include <cmath>

#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

// p: the position of (j, i0)
SKYLOOM_INLINE void read_positions_body(const PixelMap& map, const double* __restrict p, int n, Centres& __restrict c) {
  // the next row of the batch is far away in memory; a prefetch beyond the map does no harm
  for (int64_t k = 0; k < n * map.col; k += 8) __builtin_prefetch(p + map.row + k);
  if (map.col == 2 && map.axis == 1) {
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) {
      c.x[k] = p[2 * k];
      c.y[k] = p[2 * k + 1];
    }
  } else {
    for (int k = 0; k < n; ++k) {
      c.x[k] = p[k * map.col];
      c.y[k] = p[k * map.col + map.axis];
    }
  }
  for (int k = n; k < kBatch; ++k) c.x[k] = c.y[k] = kFarAway;
  for (int k = 0; k < kBatch; ++k) {
    const bool known = (std::fabs(c.x[k]) < kFarAway) & (std::fabs(c.y[k]) < kFarAway);
    c.known[k] = known;
    c.x[k] = known ? c.x[k] : 0.0;
    c.y[k] = known ? c.y[k] : 0.0;
  }
}

SKYLOOM_DISPATCH(void, read_positions, (const PixelMap& map, const double* p, int n, Centres& c), (map, p, n, c))

}  // namespace

void read_centres(const PixelMap& map, int64_t j, int64_t i0, int n, Centres& c) {
  RowPiece piece;
  read_positions(map, piece.read(map, j, i0, n), n, c);
}

bool known_extent(const PixelMap& map, int64_t j, int64_t i0, int n, Extent& e) {
  Centres c;
  read_centres(map, j, i0, n, c);
  e = {kFarAway, -kFarAway, kFarAway, -kFarAway};
  bool any = false;
  for (int k = 0; k < n; ++k) {
    if (!c.known[k]) continue;
    any = true;
    e.take({c.x[k] + 0.5, c.x[k] + 0.5, c.y[k] + 0.5, c.y[k] + 0.5});
  }
  return any;
}

}  // namespace skyloom::drizzle

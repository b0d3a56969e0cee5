// How the tiles of an output are handed out to threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace skyloom::drizzle {

// Each thread has a part of the output, and helps the others when that is done. Far apart, two threads do not touch the
// same fresh page at the same time: the system would clear it twice.
struct TileQueue {
  int64_t* taken;  // of each part
  int64_t parts, own;

  template <class Work>
  void for_each(int64_t tiles, Work work) const {
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t part = (own + i) % parts, first = tiles * part / parts, stop = tiles * (part + 1) / parts;
      std::atomic_ref<int64_t> next(taken[part]);
      for (int64_t t = first + next.fetch_add(1); t < stop; t = first + next.fetch_add(1)) work(t);
    }
  }
};

}  // namespace skyloom::drizzle

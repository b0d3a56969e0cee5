#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "stamps.hpp"

namespace skyloom {
namespace {

struct Peak {
  float value;
  std::int64_t x, y;
};

// Whether none of the neighbours in the cell is brighter.
bool is_peak(const StampImage& image, const StampRule& rule, std::int64_t x, std::int64_t y) {
  const float value = image.data[y * image.nx + x];
  for (std::int64_t v = std::max(rule.y0, y - 1); v <= std::min(rule.y1, y + 1); ++v)
    for (std::int64_t u = std::max(rule.x0, x - 1); u <= std::min(rule.x1, x + 1); ++u)
      if (image.data[v * image.nx + u] > value) return false;
  return true;
}

std::vector<Peak> peaks(const StampImage& image, const StampRule& rule) {
  std::vector<Peak> found;
  for (std::int64_t y = rule.y0; y <= rule.y1; ++y) {
    const float* row = image.data + y * image.nx;
    for (std::int64_t x = rule.x0; x <= rule.x1; ++x)
      if (row[x] > rule.floor && row[x] < rule.upper && image.good[y * image.nx + x] && is_peak(image, rule, x, y))
        found.push_back({row[x], x, y});
  }
  std::stable_sort(found.begin(), found.end(), [](const Peak& a, const Peak& b) { return a.value > b.value; });
  return found;
}

// The signal of a sub-stamp at (x, y); not positive if it is not fit to be one.
double signal_of(const StampImage& image, const StampRule& rule, std::int64_t x, std::int64_t y) {
  const std::int64_t side = 2 * rule.half + 1;
  std::int64_t n_good = 0, n_bright = 0;
  double sum = 0.0;
  for (std::int64_t v = -rule.half; v <= rule.half; ++v) {
    const float* row = image.data + (y + v) * image.nx + x;
    const bool* good = image.good + (y + v) * image.nx + x;
    if (std::abs(v) <= rule.core)
      for (std::int64_t u = -rule.core; u <= rule.core; ++u)
        if (!good[u] || row[u] >= rule.upper) return 0.0;
    for (std::int64_t u = -rule.half; u <= rule.half; ++u) {
      const bool bright = good[u] && row[u] > rule.floor;
      n_good += good[u];
      n_bright += bright;
      sum += bright ? row[u] : 0.0;
    }
  }
  return n_good < rule.least_good * side * side ? 0.0 : sum - rule.sky * n_bright;
}

}  // namespace

int find_substamps(const StampImage& image, const StampRule& rule, const std::int64_t* given, std::int64_t n,
                   FoundStamp* found, int count, int most) {
  const std::vector<Peak> own = given == nullptr ? peaks(image, rule) : std::vector<Peak>();
  if (given == nullptr) n = static_cast<std::int64_t>(own.size());
  for (std::int64_t k = 0; k < n && count < most; ++k) {
    const std::int64_t x = given ? given[2 * k] : own[k].x, y = given ? given[2 * k + 1] : own[k].y;
    if (x < rule.left || x > rule.right || y < rule.bottom || y > rule.top) continue;
    if (std::any_of(found, found + count, [&](const FoundStamp& one) {
          return std::abs(one.x - x) <= rule.half && std::abs(one.y - y) <= rule.half;
        }))
      continue;
    const double signal = signal_of(image, rule, x, y);
    if (signal > 0.0) found[count++] = {double(x), double(y), signal};
  }
  return count;
}

}  // namespace skyloom

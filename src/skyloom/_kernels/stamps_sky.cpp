#include <algorithm>
#include <cstdint>

#include "stamps.hpp"

namespace skyloom {
namespace {

constexpr double kQuartiles = 1.35;  // their distance in a Gaussian, in standard deviations
constexpr double kModeShare = 0.1;
constexpr int kRounds = 5;

}  // namespace

Sky sky_statistics(const float* first, const float* last, double clip) {
  double middle = 0.0, sigma = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    const auto at = [&](double share) { return double(first[std::int64_t(share * double(last - first - 1))]); };
    middle = at(0.5);
    sigma = (at(0.75) - at(0.25)) / kQuartiles;
    // float64: the limits must not be rounded to what the pixels are
    const float* low = std::lower_bound(first, last, middle - clip * sigma, [](float a, double b) { return a < b; });
    const float* high = std::lower_bound(low, last, middle + clip * sigma, [](float a, double b) { return a < b; });
    if (low == high || (low == first && high == last)) break;
    first = low, last = high;
  }
  const std::int64_t share = std::max<std::int64_t>(2, std::int64_t(kModeShare * double(last - first)));
  if (share >= last - first) return {middle, sigma};
  const float* shortest = first;
  for (const float* start = first; start + share < last; ++start)
    if (start[share] - *start < shortest[share] - *shortest) shortest = start;
  return {double(*shortest + shortest[share]) / 2, sigma};
}

}  // namespace skyloom

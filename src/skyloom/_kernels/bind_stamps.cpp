#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>

#include "bind_checks.hpp"
#include "stamps.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Box = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

int find_substamps(Array<const float, 2> data, Array<const bool, 2> good, Box cell, Box middles,
                   std::tuple<std::int64_t, std::int64_t> halves, std::tuple<double, double, double> levels,
                   double least_good, std::optional<Array<const std::int64_t, 2>> given, Array<double, 2> found,
                   int count) {
  const auto ny = static_cast<std::int64_t>(data.shape(0)), nx = static_cast<std::int64_t>(data.shape(1));
  need(good.shape(0) == data.shape(0) && good.shape(1) == data.shape(1), "data and good must have the same shape");
  const auto [x0, x1, y0, y1] = cell;
  const auto [left, right, bottom, top] = middles;
  const auto [half, core] = halves;
  const auto [sky, floor, upper] = levels;
  need(0 <= x0 && x1 < nx && 0 <= y0 && y1 < ny, "the cell lies outside of the image");
  need(half >= core && core >= 0, "the core must lie in the sub-stamp");
  need(left >= half && right < nx - half && bottom >= half && top < ny - half, "sub-stamps must lie in the image");
  need(!given || given->shape(1) == 2, "given must have two columns");
  need(found.shape(1) == 3 && 0 <= count && std::size_t(count) <= found.shape(0), "found must have room and 3 columns");
  nb::gil_scoped_release release;
  return skyloom::find_substamps({data.data(), good.data(), nx},
                                 {x0, x1, y0, y1, left, right, bottom, top, half, core, sky, floor, upper, least_good},
                                 given ? given->data() : nullptr, given ? std::int64_t(given->shape(0)) : 0,
                                 reinterpret_cast<skyloom::FoundStamp*>(found.data()), count, int(found.shape(0)));
}

void weighted_gram(Array<const float, 2> planes, Array<const float, 1> roots, Array<double, 2> gram) {
  const auto n = planes.shape(0), size = planes.shape(1);
  need(roots.shape(0) == size, "the roots must be as many as the pixels");
  need(gram.shape(0) == n && gram.shape(1) == n, "gram must be square, with a row for each plane");
  nb::gil_scoped_release release;
  skyloom::weighted_gram(planes.data(), roots.data(), int(n), std::int64_t(size), gram.data());
}

template <class T>
void filter_stamp(Array<const T, 2> stamp, Array<const T, 2> along_x, Array<const T, 2> along_y,
                  Array<const std::int64_t, 1> first, Array<T, 3> out) {
  const auto n_x = along_x.shape(0), width = along_x.shape(1), m = along_y.shape(0);
  need(width % 2 == 1 && along_y.shape(1) == width, "filters must have the same odd number of taps");
  need(first.shape(0) == n_x + 1 && first(0) == 0 && first(n_x) == std::int64_t(m), "first must number the filters");
  for (std::size_t k = 0; k < n_x; ++k) need(first(k) <= first(k + 1), "first must not decrease");
  need(stamp.shape(0) >= width && stamp.shape(1) >= width, "the stamp is smaller than the filters");
  need(out.shape(0) == m && out.shape(1) == stamp.shape(0) - width + 1 && out.shape(2) == stamp.shape(1) - width + 1,
       "out must have a plane for each filter, of the stamp less its borders");
  nb::gil_scoped_release release;
  skyloom::filter_stamp<T>({along_x.data(), along_y.data(), first.data(), int(n_x), int(width)}, stamp.data(),
                           std::int64_t(stamp.shape(0)), std::int64_t(stamp.shape(1)), out.data());
}

template <class T>
void define_filter(nb::module_& m) {
  m.def("filter_stamp", &filter_stamp<T>, "stamp"_a.noconvert(), "along_x"_a.noconvert(), "along_y"_a.noconvert(),
        "first"_a.noconvert(), "out"_a.noconvert(), "Correlate a stamp with separable filters.");
}

}  // namespace

void bind_stamps(nb::module_& m) {
  m.def("find_substamps", &find_substamps, "data"_a.noconvert(), "good"_a.noconvert(), "cell"_a, "middles"_a, "halves"_a,
        "levels"_a, "least_good"_a, "given"_a.none(), "found"_a.noconvert(), "count"_a,
        "Add sub-stamps (x, y, signal) to `found`; return how many there are.");
  m.def("weighted_gram", &weighted_gram, "planes"_a.noconvert(), "roots"_a.noconvert(), "gram"_a.noconvert(),
        "gram = sum over pixels of roots^2 * planes * planes^T, in single precision.");
  define_filter<float>(m);
  define_filter<double>(m);
}

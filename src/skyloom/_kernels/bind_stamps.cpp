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

std::tuple<double, double> sky_statistics(Array<const float, 1> pixels, double clip) {
  need(pixels.shape(0) > 0, "there must be pixels");
  nb::gil_scoped_release release;
  const auto sky = skyloom::sky_statistics(pixels.data(), pixels.data() + pixels.shape(0), clip);
  return {sky.mode, sky.sigma};
}

using Rows = Array<const std::int64_t, 1>;

template <class A>
void need_stamps(const A& array, std::size_t count, std::size_t size) {
  need(array.shape(0) == count && array.shape(1) == size, "all arrays must have the same stamps and pixels");
}

void need_rows(const Rows& rows, std::size_t count) {
  for (std::size_t i = 0; i < rows.shape(0); ++i)
    need(rows(i) >= 0 && std::size_t(rows(i)) < count, "there is no stamp of that number");
}

void stamp_sums(Array<const float, 3> planes, Array<const float, 2> target_variance,
                Array<const float, 2> convolved_variance, Array<const bool, 2> good, Array<float, 2> signal, float eps,
                int step, Rows rows, Array<double, 3> grams, Array<double, 2> moments, Array<double, 1> noise) {
  const auto count = planes.shape(0), size = planes.shape(2), n = grams.shape(1);
  need(planes.shape(1) == n + 1 && grams.shape(0) == count && grams.shape(2) == n, "grams must be (stamps, n, n)");
  need(moments.shape(0) == count && moments.shape(1) == n && noise.shape(0) == count, "moments must be (stamps, n)");
  need_stamps(target_variance, count, size), need_stamps(convolved_variance, count, size);
  need_stamps(good, count, size), need_stamps(signal, count, size);
  need_rows(rows, count);
  need(step > 0, "the step must be positive");
  nb::gil_scoped_release release;
  for (std::size_t i = 0; i < rows.shape(0); ++i) {
    const auto k = rows.data()[i];
    noise.data()[k] = skyloom::stamp_sums(
        {planes.data() + k * (n + 1) * size, target_variance.data() + k * size, convolved_variance.data() + k * size,
         good.data() + k * size, signal.data() + k * size, nullptr, int(n), std::int64_t(size), eps},
        step, grams.data() + k * n * n, moments.data() + k * n);
  }
}

void stamp_residuals(Array<const float, 3> planes, Array<const float, 2> local, int n_signal, Rows rows,
                     Array<float, 2> signal, Array<float, 2> residual) {
  const auto count = planes.shape(0), size = planes.shape(2), n = local.shape(1);
  need(planes.shape(1) == n + 1 && local.shape(0) == count, "local must be (stamps, n)");
  need(0 <= n_signal && std::size_t(n_signal) <= n, "n_signal must be 0 to n");
  need_stamps(signal, count, size), need_stamps(residual, count, size);
  need_rows(rows, count);
  nb::gil_scoped_release release;
  for (std::size_t i = 0; i < rows.shape(0); ++i) {
    const auto k = rows.data()[i];
    skyloom::stamp_residuals({planes.data() + k * (n + 1) * size, nullptr, nullptr, nullptr, signal.data() + k * size,
                              residual.data() + k * size, int(n), std::int64_t(size), 0.0f},
                             local.data() + k * n, n_signal);
  }
}

void stamp_merits(Array<float, 2> residual, Array<float, 2> signal, Array<const float, 2> target_variance,
                  Array<const float, 2> convolved_variance, Array<const bool, 2> good, float eps, float most, Rows rows,
                  Array<double, 1> merits) {
  const auto count = residual.shape(0), size = residual.shape(1);
  need_stamps(signal, count, size), need_stamps(target_variance, count, size);
  need_stamps(convolved_variance, count, size), need_stamps(good, count, size);
  need(merits.shape(0) == count, "there must be a merit for each stamp");
  need_rows(rows, count);
  nb::gil_scoped_release release;
  for (std::size_t i = 0; i < rows.shape(0); ++i) {
    const auto k = rows.data()[i];
    merits.data()[k] = skyloom::stamp_merit(
        {nullptr, target_variance.data() + k * size, convolved_variance.data() + k * size, good.data() + k * size,
         signal.data() + k * size, residual.data() + k * size, 0, std::int64_t(size), eps},
        most);
  }
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
  m.def("sky_statistics", &sky_statistics, "pixels"_a.noconvert(), "clip"_a,
        "Mode and standard deviation of the sky of sorted pixels.");
  m.def("stamp_sums", &stamp_sums, "planes"_a.noconvert(), "target_variance"_a.noconvert(),
        "convolved_variance"_a.noconvert(), "good"_a.noconvert(), "signal"_a.noconvert(), "eps"_a, "step"_a,
        "rows"_a.noconvert(), "grams"_a.noconvert(), "moments"_a.noconvert(), "noise"_a.noconvert(),
        "Sum the weighted equations of some stamps.");
  m.def("stamp_residuals", &stamp_residuals, "planes"_a.noconvert(), "local"_a.noconvert(), "n_signal"_a,
        "rows"_a.noconvert(), "signal"_a.noconvert(), "residual"_a.noconvert(), "Signal and residual of some stamps.");
  m.def("stamp_merits", &stamp_merits, "residual"_a.noconvert(), "signal"_a.noconvert(), "target_variance"_a.noconvert(),
        "convolved_variance"_a.noconvert(), "good"_a.noconvert(), "eps"_a, "most"_a, "rows"_a.noconvert(),
        "merits"_a.noconvert(), "Mean squared residuals of some stamps, in units of their variance.");
  define_filter<float>(m);
  define_filter<double>(m);
}

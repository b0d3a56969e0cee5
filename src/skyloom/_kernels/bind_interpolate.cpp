#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "blot.hpp"
#include "interpolate.hpp"
#include "pixmap.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

template <class A>
auto pointer(const std::optional<A>& array) {
  return array ? array->data() : nullptr;
}

template <class A, class B>
bool same_shape(const A& a, const std::optional<B>& b) {
  return !b || (b->shape(0) == a.shape(0) && b->shape(1) == a.shape(1));
}

void check_table(const In<double, 2>& coefficients) {
  const auto rows = coefficients.shape(0), taps = coefficients.shape(1);
  require(taps >= 2 && taps <= skyloom::kMaxTaps && taps % 2 == 0 && rows >= 1 && rows <= skyloom::kMaxDegree + 1,
          "coefficients must be (1 to 25, 2, 4, 6, 8 or 10)");
}

template <class T, auto Kernel>
void interpolate(In<T, 2> data, std::optional<In<T, 2>> variance, std::optional<In<std::uint32_t, 2>> mask,
                 std::optional<In<std::uint8_t, 2>> clean, In<double, 2> xy, In<double, 2> coefficients,
                 std::uint32_t unusable, std::uint32_t no_data, std::uint32_t edge, std::uint32_t spread,
                 double max_lost, Out<T, 1> out_data, std::optional<Out<T, 1>> out_variance,
                 Out<std::uint32_t, 1> out_mask, std::optional<In<double, 1>> factor, std::ptrdiff_t columns,
                 std::optional<Out<float, 1>> coverage, std::optional<In<T, 2>> spline, int spline_degree) {
  const auto n = xy.shape(0);
  const std::ptrdiff_t row = columns > 0 ? columns : std::ptrdiff_t(n);
  require(n == 0 || std::ptrdiff_t(n) % row == 0, "columns must divide the number of positions");
  require(same_shape(data, variance) && same_shape(data, mask) && same_shape(data, clean) && same_shape(data, spline),
          "data, variance, mask, clean and spline must have the same shape");
  require(!spline || ((spline_degree == 3 || spline_degree == 5) && coefficients.shape(1) == skyloom::kMaxTaps),
          "a spline has degree 3 or 5, and coefficients for 10 taps");
  require(mask.has_value() == clean.has_value(), "mask and clean go together");
  require(variance.has_value() == out_variance.has_value(), "variance and out_variance go together");
  require(xy.shape(1) == 2 && out_data.shape(0) == n && out_mask.shape(0) == n &&
              (!out_variance || out_variance->shape(0) == n) && (!factor || factor->shape(0) == n) &&
              (!coverage || coverage->shape(0) == n),
          "xy must be (n, 2), the outputs and factor (n,)");
  check_table(coefficients);
  const skyloom::Image<T> in{data.data(), pointer(variance), pointer(mask), pointer(clean), std::ptrdiff_t(data.shape(0)),
                             std::ptrdiff_t(data.shape(1)), pointer(spline), spline_degree};
  const skyloom::Samples<T> out{xy.data(),       pointer(factor),       std::ptrdiff_t(n),  row,
                                out_data.data(), pointer(out_variance), out_mask.data(),
                                pointer(coverage)};
  const skyloom::MaskRules rules{unusable, no_data, edge, spread, max_lost};
  nb::gil_scoped_release release;
  Kernel(in, coefficients.data(), int(coefficients.shape(0)) - 1, int(coefficients.shape(1)), rules, out);
}

template <class T, auto Kernel, auto Nearest>
void blot(In<T, 2> data, In<double, 3> pixmap, std::optional<In<double, 2>> coefficients, bool odd_border, double scale,
          double fill, Out<T, 2> out) {
  require(pixmap.shape(2) == 2 && pixmap.shape(0) == out.shape(0) && pixmap.shape(1) == out.shape(1),
          "pixmap must be (ny, nx, 2), out (ny, nx)");
  require(data.size() > 0, "data must not be empty");
  if (coefficients) check_table(*coefficients);
  const skyloom::BlotInput<T> in{data.data(), std::ptrdiff_t(data.shape(0)), std::ptrdiff_t(data.shape(1)),
                                 pixmap.data(), std::ptrdiff_t(out.size())};
  const skyloom::BlotValues values{scale, fill};
  const auto border = odd_border ? skyloom::Border::odd : skyloom::Border::edge;
  nb::gil_scoped_release release;
  if (coefficients)
    Kernel(in, coefficients->data(), int(coefficients->shape(0)) - 1, int(coefficients->shape(1)), border, values,
           out.data());
  else
    Nearest(in, values, out.data());
}

void clean_windows(In<std::uint32_t, 2> mask, int taps, std::ptrdiff_t row_start, std::ptrdiff_t row_stop,
                   Out<std::uint8_t, 2> clean) {
  require(clean.shape(0) == mask.shape(0) && clean.shape(1) == mask.shape(1), "clean must have the shape of mask");
  require(0 <= row_start && row_start <= row_stop && std::size_t(row_stop) <= mask.shape(0), "rows out of range");
  require(taps >= 2 && taps <= skyloom::kMaxTaps && taps % 2 == 0, "taps must be 2, 4, 6, 8 or 10");
  nb::gil_scoped_release release;
  skyloom::clean_windows(mask.data(), std::ptrdiff_t(mask.shape(0)), std::ptrdiff_t(mask.shape(1)), taps, row_start,
                         row_stop, clean.data());
}

void check_axis(const In<std::int32_t, 1>& first, const In<double, 2>& weight, std::size_t nodes) {
  require(weight.shape(0) == first.shape(0) && weight.shape(1) == 4, "weights must be (n, 4), one row per stencil");
  for (std::size_t i = 0; i < first.shape(0); ++i)
    require(first.data()[i] >= 0 && std::size_t(first.data()[i]) + 4 <= nodes, "a stencil reaches beyond the nodes");
}

void expand_grid(In<double, 3> nodes, In<std::int32_t, 1> first_x, In<double, 2> weight_x, In<std::int32_t, 1> first_y,
                 In<double, 2> weight_y, Out<double, 3> out) {
  require(nodes.shape(2) == 2 && out.shape(2) == 2, "nodes and out must be (ny, nx, 2)");
  require(out.shape(0) == first_y.shape(0) && out.shape(1) == first_x.shape(0), "out must be (rows, columns, 2)");
  check_axis(first_x, weight_x, nodes.shape(1));
  check_axis(first_y, weight_y, nodes.shape(0));
  nb::gil_scoped_release release;
  skyloom::expand_grid(nodes.data(), std::ptrdiff_t(nodes.shape(1)), {first_x.data(), weight_x.data()},
                       {first_y.data(), weight_y.data()}, std::ptrdiff_t(out.shape(0)), std::ptrdiff_t(out.shape(1)),
                       out.data());
}

void pixel_area_ratio(In<double, 3> pixmap, std::ptrdiff_t row_start, std::ptrdiff_t row_stop, Out<double, 2> area) {
  require(pixmap.shape(2) == 2 && area.shape(1) == pixmap.shape(1), "pixmap must be (ny, nx, 2), area (rows, nx)");
  require(0 <= row_start && row_start <= row_stop && std::size_t(row_stop) <= pixmap.shape(0) &&
              std::size_t(row_stop - row_start) == area.shape(0),
          "rows out of range");
  nb::gil_scoped_release release;
  skyloom::pixel_area_ratio(pixmap.data(), std::ptrdiff_t(pixmap.shape(0)), std::ptrdiff_t(pixmap.shape(1)), row_start,
                            row_stop, area.data());
}

template <class T, auto Kernel>
void define_interpolate(nb::module_& m) {
  m.def("interpolate", &interpolate<T, Kernel>, "data"_a.noconvert(), "variance"_a.noconvert().none(),
        "mask"_a.noconvert().none(), "clean"_a.noconvert().none(), "xy"_a.noconvert(), "coefficients"_a.noconvert(),
        "unusable"_a, "no_data"_a, "edge"_a, "spread"_a, "max_lost"_a, "out_data"_a.noconvert(),
        "out_variance"_a.noconvert().none(), "out_mask"_a.noconvert(), "factor"_a.noconvert().none() = nb::none(),
        "columns"_a = 0, "coverage"_a.noconvert().none() = nb::none(), "spline"_a.noconvert().none() = nb::none(),
        "spline_degree"_a = 0, "Interpolate an image at the positions xy, with its variance and mask.");
}

template <class T, auto Kernel, auto Nearest>
void define_blot(nb::module_& m) {
  m.def("blot", &blot<T, Kernel, Nearest>, "data"_a.noconvert(), "pixmap"_a.noconvert(),
        "coefficients"_a.noconvert().none(), "odd_border"_a, "scale"_a, "fill"_a, "out"_a.noconvert(),
        "Interpolate an image at the positions of a pixmap; without coefficients take the nearest pixel.");
}

}  // namespace

void bind_interpolate(nb::module_& m) {
  define_interpolate<float, &skyloom::interpolate_f32>(m);
  define_interpolate<double, &skyloom::interpolate_f64>(m);
  define_blot<float, &skyloom::blot_f32, &skyloom::blot_nearest_f32>(m);
  define_blot<double, &skyloom::blot_f64, &skyloom::blot_nearest_f64>(m);
  m.def("clean_windows", &clean_windows, "mask"_a.noconvert(), "taps"_a, "row_start"_a, "row_stop"_a,
        "clean"_a.noconvert(), "Mark the pixels whose interpolation footprint holds no mask bit.");
  m.def("expand_grid", &expand_grid, "nodes"_a.noconvert(), "first_x"_a.noconvert(), "weight_x"_a.noconvert(),
        "first_y"_a.noconvert(), "weight_y"_a.noconvert(), "out"_a.noconvert(),
        "Interpolate a coarse coordinate grid to pixels.");
  m.def("pixel_area_ratio", &pixel_area_ratio, "pixmap"_a.noconvert(), "row_start"_a, "row_stop"_a,
        "area"_a.noconvert(), "Area of each pixel after a coordinate map, |det d(pixmap)/d(x, y)|.");
}

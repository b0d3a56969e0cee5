#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "bind_checks.hpp"
#include "correlate.hpp"
#include "fourier.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int D>
using In = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;

// A spectrum is an array of shape (blocks, ny, 2, lanes).
template <class A>
void check_spectrum(const A& a, std::size_t axis, std::int64_t ny, std::int64_t nx, int lanes) {
  need(static_cast<std::int64_t>(a.shape(axis)) == (nx / 2 + lanes) / lanes &&
           static_cast<std::int64_t>(a.shape(axis + 1)) == ny && a.shape(axis + 2) == 2 &&
           static_cast<int>(a.shape(axis + 3)) == lanes,
       "spectra must have the shape (blocks, ny, 2, lanes)");
}

template <class T, auto Kernel>
void tile_spectrum(In<T, 2> plane, std::int64_t nx, nb::ndarray<T, nb::ndim<4>, nb::c_contig, nb::device::cpu> out) {
  const auto ny = static_cast<std::int64_t>(out.shape(1));
  need(0 < nx && nx < 1 << 20 && 0 < ny && ny < 1 << 20, "sides must be 1 to 2^20 pixels");
  check_spectrum(out, 0, ny, nx, skyloom::kLanes<T>);
  const auto rows = static_cast<std::int64_t>(plane.shape(0)), columns = static_cast<std::int64_t>(plane.shape(1));
  need(rows <= ny && columns <= nx, "the plane must not be larger than the tile");
  nb::gil_scoped_release release;
  Kernel({plane.data(), int(rows), int(columns), int(ny), int(nx), out.data()});
}

template <class T, auto Kernel>
void filter_tile(In<T, 6> filters, std::vector<In<T, 4>> spectra, In<T, 2> mixture, In<T, 3> weights, std::int64_t nx,
                 std::int64_t first, nb::ndarray<T, nb::ndim<2>, nb::device::cpu> out) {
  const auto rank = filters.shape(0), planes = filters.shape(1), terms = mixture.shape(0);
  const auto ny = static_cast<std::int64_t>(filters.shape(3));
  need(0 < nx && nx < 1 << 20 && 0 < ny && ny < 1 << 20, "sides must be 1 to 2^20 pixels");
  check_spectrum(filters, 2, ny, nx, skyloom::kLanes<T>);
  need(spectra.size() == planes && planes > 0 && rank > 0 && terms > 0, "as many spectra as the filter takes");
  skyloom::TileFilter<T> tile{int(ny), int(nx), filters.data(), int(rank), {}, mixture.data(), weights.data(),
                              int(terms), int(first), out.data(), int(out.shape(0)), int(out.shape(1)), out.stride(0)};
  for (const auto& spectrum : spectra) {
    check_spectrum(spectrum, 0, ny, nx, skyloom::kLanes<T>);
    tile.planes.push_back(spectrum.data());
  }
  need(mixture.shape(1) == rank, "mixture must have the shape (terms, rank)");
  need(weights.shape(0) == terms && weights.shape(1) == out.shape(0) && weights.shape(2) == out.shape(1),
       "weights must have the shape of the output, for each term");
  need(out.shape(1) <= 1 || out.stride(1) == 1, "rows of the output must be contiguous");
  need(first >= 0 && first + tile.rows <= ny && first + tile.columns <= nx, "the output must lie in the tile");
  nb::gil_scoped_release release;
  Kernel(tile);
}

template <class T, auto Spectrum, auto Filter>
void define(nb::module_& m) {
  m.def("tile_spectrum", &tile_spectrum<T, Spectrum>, "plane"_a.noconvert(), "nx"_a, "out"_a.noconvert(),
        "Fourier transform of a plane with zeros beyond it, in blocks of frequencies; see skyloom.filters.");
  m.def("filter_tile", &filter_tile<T, Filter>, "filters"_a.noconvert(), "spectra"_a, "mixture"_a.noconvert(),
        "weights"_a.noconvert(), "nx"_a, "first"_a, "out"_a.noconvert(),
        "Sum of inverse transforms of products with filters, times weights; see skyloom.filters.");
}

}  // namespace

void bind_correlate(nb::module_& m) {
  m.attr("SPECTRUM_BYTES") = skyloom::kSpectrumBytes;
  define<float, &skyloom::tile_spectrum_f32, &skyloom::filter_tile_f32>(m);
  define<double, &skyloom::tile_spectrum_f64, &skyloom::filter_tile_f64>(m);
}

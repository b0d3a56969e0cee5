#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <string_view>

#include "bind_planes.hpp"
#include "drizzle_separable.hpp"
#include "drizzle_square.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace skyloom::drizzle;

namespace {

using WritePlane = nb::ndarray<nb::ndim<2>, nb::device::cpu>;
using ReadBits = nb::ndarray<const uint32_t, nb::ndim<2>, nb::device::cpu>;
using WriteBits = nb::ndarray<uint32_t, nb::ndim<2>, nb::device::cpu>;
using Context = nb::ndarray<int32_t, nb::ndim<2>, nb::device::cpu>;
using Queue = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T, class Array>
IntPlane<T> bits_of(Array& a, size_t ny, size_t nx) {
  need(a.shape(0) == ny && a.shape(1) == nx, "the planes of a drizzle differ in shape");
  return {a.data(), a.stride(0), a.stride(1)};
}

using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Positions = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Nodes = nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Stencils = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The arrays stay alive as long as these objects: Python hands them to every thread.
struct BoundFootprint : Footprint {
  Map array;
  BoundFootprint(const PixelMap& map, const Window& window, double half, double margin, int64_t ny, int64_t nx)
      : Footprint(map, window, half, margin, ny, nx) {}
};

struct BoundGrid : skyloom::MapGrid {
  int64_t ny;
  Nodes node_array;
  Stencils first_x, first_y;
  Positions weight_x, weight_y, exact_positions;
  Indices exact_indices;
  std::vector<int32_t> run_ends;
  std::vector<double> pair_weights;

  // Arrange the weights along x for expand_piece.
  void arrange() {
    const size_t n = size_t(nx), length = 2 * n + kPadding;
    run_ends.resize(n);
    pair_weights.resize(4 * length);
    for (size_t i = n; i-- > 0;) {
      run_ends[i] = i + 1 < n && x.first[i + 1] == x.first[i] ? run_ends[i + 1] : int32_t(i + 1);
      for (size_t k = 0; k < 4; ++k)
        pair_weights[k * length + 2 * i] = pair_weights[k * length + 2 * i + 1] = x.weight[4 * i + k];
    }
    run_end = run_ends.data();
    for (size_t k = 0; k < 4; ++k) pair_weight[k] = pair_weights.data() + k * length;
  }
};

struct BoundInput : Input {
  std::vector<ReadPlane> planes;
  std::optional<ReadBits> bits, mask_bits;
};

struct BoundOutput : Output {
  std::vector<WritePlane> planes;
  std::optional<WriteBits> bits;
  std::optional<Context> context_plane;
};

void check_stencils(const Stencils& first, const Positions& weight, size_t nodes) {
  need(weight.shape(0) == first.shape(0) && weight.shape(1) == 4, "a stencil has four weights");
  for (size_t i = 0; i < first.shape(0); ++i) {
    const int32_t f = first.data()[i];
    need(f >= 0 && size_t(f) + 4 <= nodes && (i == 0 || f >= first.data()[i - 1]), "stencils must lie on the grid and rise");
  }
}

void make_grid(BoundGrid* self, Nodes nodes, Stencils first_x, Positions weight_x, Stencils first_y, Positions weight_y,
               Indices exact_index, Positions exact_xy) {
  need(nodes.shape(2) == 2, "the nodes of a map have the shape (my, mx, 2)");
  check_stencils(first_x, weight_x, nodes.shape(1));
  check_stencils(first_y, weight_y, nodes.shape(0));
  const int64_t ny = int64_t(first_y.shape(0)), nx = int64_t(first_x.shape(0));
  const size_t count = exact_index.shape(0);
  need(exact_xy.shape(0) == count && exact_xy.shape(1) == 2, "each exact pixel has one position");
  for (size_t i = 0; i < count; ++i)
    need(exact_index.data()[i] < ny * nx && exact_index.data()[i] > (i == 0 ? -1 : exact_index.data()[i - 1]),
         "exact pixels must lie in the image and rise");
  const skyloom::GridAxis x{first_x.data(), weight_x.data()}, y{first_y.data(), weight_y.data()};
  const skyloom::MapGrid grid{nodes.data(), std::ptrdiff_t(nodes.shape(1)), x, y, nullptr, {}, std::ptrdiff_t(nx),
                              exact_index.data(), exact_xy.data(), std::ptrdiff_t(count)};
  new (self) BoundGrid{grid, ny, std::move(nodes), std::move(first_x), std::move(first_y), std::move(weight_x),
                       std::move(weight_y), std::move(exact_xy), std::move(exact_index), {}, {}};
  self->arrange();
}

void start_footprint(BoundFootprint* self, const PixelMap& map, std::array<int64_t, 4> window,
                     std::array<int64_t, 2> frame, double half, double margin) {
  const int64_t ny = map.ny, nx = map.nx;
  const Window w{window[0], window[1], window[2], window[3]};
  need(w.x0 >= 0 && w.x0 < w.x1 && w.x1 <= nx && w.y0 >= 0 && w.y0 < w.y1 && w.y1 <= ny, "the window leaves the image");
  need(frame[0] > 0 && frame[1] > 0 && frame[0] < (1 << 28) && frame[1] < (1 << 28), "the frame has no usable size");
  new (self) BoundFootprint(map, w, half, margin, frame[0], frame[1]);
}

void make_footprint(BoundFootprint* self, Map pixmap, std::array<int64_t, 4> window, std::array<int64_t, 2> frame,
                    double half, double margin, double unit) {
  need(pixmap.shape(2) == 2, "a pixel map has the shape (ny, nx, 2)");
  const PixelMap map{pixmap.data(), int64_t(pixmap.shape(0)), int64_t(pixmap.shape(1)), pixmap.stride(0),
                     pixmap.stride(1), pixmap.stride(2), unit};
  start_footprint(self, map, window, frame, half, margin);
  self->array = std::move(pixmap);
}

void make_footprint_of_grid(BoundFootprint* self, const BoundGrid& grid, std::array<int64_t, 4> window,
                            std::array<int64_t, 2> frame, double half, double margin, double unit) {
  start_footprint(self, {nullptr, grid.ny, grid.nx, 0, 2, 1, unit, &grid}, window, frame, half, margin);
}

void find(BoundFootprint& self, Queue queue) {
  std::atomic_ref<int64_t> next(*queue.data());
  nb::gil_scoped_release release;
  for (int64_t b = next.fetch_add(1); b < self.block_rows(); b = next.fetch_add(1)) self.find(b);
}

using ReadPlanes = std::vector<std::optional<ReadPlane>>;

std::optional<std::array<int64_t, 4>> whole(const BoundFootprint& self) {
  const Reach r = self.whole();
  if (r.empty()) return std::nullopt;
  return std::array<int64_t, 4>{r.x0, r.x1, r.y0, r.y1};
}

void make_input(BoundInput* self, ReadPlane data, std::optional<ReadPlane> weight, ReadPlanes squares,
                std::optional<ReadBits> dq, double data_scale, double square_scale, double weight_scale, ReadPlanes errors,
                ReadPlanes roots, double error_scale, double root_scale, double data_offset, bool inverse_weight,
                std::optional<ReadBits> mask, uint32_t rejected) {
  new (self) BoundInput();
  const size_t ny = data.shape(0), nx = data.shape(1);
  self->data = plane_of(data, ny, nx);
  if (weight) self->weight = plane_of(*weight, ny, nx);
  for (auto& s : squares) self->squares.push_back(s ? plane_of(*s, ny, nx) : Plane{});
  for (auto& s : errors) self->errors.push_back(s ? plane_of(*s, ny, nx) : Plane{});
  for (auto& s : roots) self->roots.push_back(s ? plane_of(*s, ny, nx) : Plane{});
  if (dq) self->dq = bits_of<const uint32_t>(*dq, ny, nx);
  if (mask) self->mask = bits_of<const uint32_t>(*mask, ny, nx);
  self->rejected = rejected;
  self->inverse_weight = inverse_weight;
  self->data_offset = data_offset;
  self->error_scale = error_scale;
  self->root_scale = root_scale;
  self->data_scale = data_scale;
  self->square_scale = square_scale;
  self->weight_scale = weight_scale;
  self->ny = int64_t(ny);
  self->nx = int64_t(nx);
  for (auto* planes : {&squares, &errors, &roots})
    for (auto& s : *planes)
      if (s) self->planes.push_back(std::move(*s));
  self->planes.push_back(std::move(data));
  if (weight) self->planes.push_back(std::move(*weight));
  self->bits = std::move(dq);
  self->mask_bits = std::move(mask);
}

using WritePlanes = std::vector<std::optional<WritePlane>>;

// Planes with their own sums of weights, which the object keeps alive.
std::vector<Mean> means_of(BoundOutput* self, WritePlanes& planes, WritePlanes& weights) {
  need(planes.size() == weights.size(), "planes and their weights must be equal in number");
  std::vector<Mean> means(planes.size());
  const size_t ny = size_t(self->ny), nx = size_t(self->nx);
  for (size_t s = 0; s < planes.size(); ++s) {
    if (planes[s]) means[s].mean = plane_of(*planes[s], ny, nx);
    if (weights[s]) means[s].weight = plane_of(*weights[s], ny, nx);
    for (auto* plane : {&planes[s], &weights[s]})
      if (*plane) self->planes.push_back(std::move(**plane));
  }
  return means;
}

// What Input::errors become.
void set_errors(BoundOutput& self, WritePlanes planes, WritePlanes weights) {
  self.errors = means_of(&self, planes, weights);
}

// What Input::roots become.
void set_roots(BoundOutput& self, WritePlanes planes, WritePlanes weights, std::optional<WritePlane> common_weight,
               int reference, double own_weight, double variance_scale) {
  need(reference < int(planes.size()), "there is no such reference plane");
  self.roots = means_of(&self, planes, weights);
  for (const Mean& m : self.roots)
    need(m.mean.data == nullptr || m.weight.data != nullptr || common_weight, "variances need a sum of weights");
  if (common_weight) {
    self.root_weight = plane_of(*common_weight, size_t(self.ny), size_t(self.nx));
    self.planes.push_back(std::move(*common_weight));
  }
  self.reference = reference;
  self.own_weight = own_weight;
  self.variance_scale = variance_scale;
}

void make_output(BoundOutput* self, WritePlane mean, WritePlane weight, WritePlanes squares, WritePlanes square_weights,
                 std::optional<WriteBits> dq, std::optional<Context> context, int64_t context_bit,
                 std::optional<double> fill, std::optional<double> fill_squares, bool fresh, bool filled) {
  new (self) BoundOutput();
  const size_t ny = mean.shape(0), nx = mean.shape(1);
  self->ny = int64_t(ny);
  self->nx = int64_t(nx);
  self->mean = plane_of(mean, ny, nx);
  self->weight = plane_of(weight, ny, nx);
  need(squares.size() == square_weights.size(), "square planes and their weights must be equal in number");
  for (auto& s : squares) self->squares.push_back(s ? plane_of(*s, ny, nx) : Plane{});
  for (auto& s : square_weights) self->square_weights.push_back(s ? plane_of(*s, ny, nx) : Plane{});
  bool same = self->weight.is_double == self->mean.is_double;
  for (const auto* planes : {&self->squares, &self->square_weights})
    for (const Plane& p : *planes) same = same && (p.data == nullptr || p.is_double == self->mean.is_double);
  need(same, "all output planes must be of one type");
  if (dq) self->dq = bits_of<uint32_t>(*dq, ny, nx);
  if (context) self->context = bits_of<int32_t>(*context, ny, nx);
  self->context_bit = int32_t(uint32_t(1) << (context_bit & 31));
  self->fresh = fresh;
  self->filled = filled;
  self->fill = fill.has_value();
  self->fill_value = fill.value_or(0);
  self->fill_squares = fill_squares.has_value();
  self->fill_square_value = fill_squares.value_or(0);
  for (auto* planes : {&squares, &square_weights})
    for (auto& s : *planes)
      if (s) self->planes.push_back(std::move(*s));
  self->planes.push_back(std::move(mean));
  self->planes.push_back(std::move(weight));
  self->bits = std::move(dq);
  self->context_plane = std::move(context);
}

void check(const BoundFootprint& footprint, const BoundInput& input, const BoundOutput& output, int64_t tile_edge,
           const Counts& row_hits, const Queue& queue, int64_t part) {
  need(input.ny == footprint.map.ny && input.nx == footprint.map.nx, "the image and its pixel map differ in shape");
  need(output.ny == footprint.frame_ny && output.nx == footprint.frame_nx, "the footprint is of another frame");
  need(input.squares.size() == output.squares.size(), "as many square planes are needed as go in");
  need(input.errors.size() == output.errors.size() && input.roots.size() == output.roots.size(),
       "as many planes of errors are needed as go in");
  need((input.dq.data == nullptr) == (output.dq.data == nullptr), "dq planes must be given on both sides");
  need(int64_t(row_hits.shape(0)) == footprint.rows(), "a counter has the wrong size");
  need(part >= 0 && part < int64_t(queue.shape(0)), "the queue has no such part");
  need(tile_edge >= 16, "tiles must be at least 16 cells wide");
}

void square(const BoundFootprint& footprint, const BoundInput& input, const BoundOutput& output, int64_t tile_edge,
            Counts row_hits, Queue queue, int64_t part) {
  check(footprint, input, output, tile_edge, row_hits, queue, part);
  const TileQueue tiles{queue.data(), int64_t(queue.shape(0)), part};
  nb::gil_scoped_release release;
  drizzle_square(footprint, input, output, tile_edge, row_hits.data(), tiles);
}

// The square kernel, and behind it the others in the order of Shape.
constexpr const char* kKernelNames[] = {"square", "point", "turbo", "gaussian", "lanczos2", "lanczos3"};

void make_kernel(Kernel* self, std::string_view name, double pixfrac, double scale_ratio, bool normalised) {
  const auto found = std::find(std::begin(kKernelNames) + 1, std::end(kKernelNames), name);
  need(found != std::end(kKernelNames), "there is no separable kernel of this name");
  const auto shape = found - std::begin(kKernelNames) - 1;
  need(pixfrac > 0 && scale_ratio > 0, "a drop must have a size");
  new (self) Kernel(Shape(shape), pixfrac, scale_ratio, normalised);
}

void separable(const Kernel& kernel, const BoundFootprint& footprint, const BoundInput& input, const BoundOutput& output,
               int64_t tile_edge, Counts row_hits, Queue queue, int64_t part) {
  check(footprint, input, output, tile_edge, row_hits, queue, part);
  need(footprint.half == 0 && footprint.margin >= kernel.reach, "the footprint is of another kernel");
  need(kernel.taps < (1 << 24), "drops are too wide");
  const TileQueue tiles{queue.data(), int64_t(queue.shape(0)), part};
  nb::gil_scoped_release release;
  drizzle_separable(kernel, footprint, input, output, tile_edge, row_hits.data(), tiles);
}

}  // namespace

void bind_drizzle(nb::module_& m) {
  nb::list names;
  for (const char* name : kKernelNames) names.append(name);
  m.attr("DRIZZLE_KERNELS") = nb::tuple(names);
  nb::class_<BoundGrid>(m, "MapGrid", "A coordinate map on a grid of nodes, and pixels whose positions are exact.")
      .def("__init__", &make_grid, "nodes"_a, "first_x"_a, "weight_x"_a, "first_y"_a, "weight_y"_a, "exact_index"_a,
           "exact_xy"_a);
  nb::class_<BoundFootprint>(m, "DrizzleFootprint", "Which output cells each piece of an image may reach.")
      .def("__init__", &make_footprint, "pixmap"_a, "window"_a, "frame"_a, nb::kw_only(), "half"_a, "margin"_a, "unit"_a)
      .def("__init__", &make_footprint_of_grid, nb::keep_alive<1, 2>(), "pixmap"_a, "window"_a, "frame"_a, nb::kw_only(),
           "half"_a, "margin"_a, "unit"_a)
      .def("find", &find, "queue"_a, "Find the reach of the rows of blocks that the queue hands out.")
      .def("whole", &whole, "The cells (x0, x1, y0, y1), half open, that the image may reach; None if there are none.");
  nb::class_<BoundInput>(m, "DrizzleInput", "The planes of one image that are drizzled together.")
      .def("__init__", &make_input, "data"_a, "weight"_a.none(), "squares"_a, "dq"_a.none(), nb::kw_only(),
           "data_scale"_a, "square_scale"_a, "weight_scale"_a, "errors"_a = nb::make_tuple(), "roots"_a = nb::make_tuple(),
           "error_scale"_a = 1.0, "root_scale"_a = 1.0, "data_offset"_a = 0.0, "inverse_weight"_a = false,
           "mask"_a = nb::none(), "rejected"_a = 0);
  nb::class_<BoundOutput>(m, "DrizzleOutput", "Running weighted means, and what goes with them.")
      .def("__init__", &make_output, "mean"_a, "weight"_a, "squares"_a, "square_weights"_a, "dq"_a.none(),
           "context"_a.none(), nb::kw_only(), "context_bit"_a, "fill"_a.none(), "fill_squares"_a.none(),
           "fresh"_a = false, "filled"_a = false)
      .def("set_errors", &set_errors, "planes"_a, "weights"_a, "Where the planes of errors of the image go.")
      .def("set_roots", &set_roots, "planes"_a, "weights"_a, "common_weight"_a.none(), nb::kw_only(), "reference"_a,
           "own_weight"_a, "variance_scale"_a, "Where the squares of the mean roots of the image go.");
  nb::class_<Kernel>(m, "DrizzleKernel", "A kernel that shares out drops by their distance from a cell along each axis.")
      .def("__init__", &make_kernel, "name"_a, nb::kw_only(), "pixfrac"_a, "scale_ratio"_a, "normalised"_a)
      .def_ro("reach", &Kernel::reach, "Cells with their centre farther than this, plus 1/2, get nothing.");
  m.def("drizzle_separable", &separable, "kernel"_a, "footprint"_a, "image"_a, "output"_a, "tile_edge"_a, "row_hits"_a,
        "queue"_a, "part"_a, "Drizzle, with a separable kernel, the output tiles that the queue hands out.");
  m.def("drizzle_square", &square, "footprint"_a, "image"_a, "output"_a, "tile_edge"_a, "row_hits"_a, "queue"_a,
        "part"_a, "Drizzle, with the square kernel, the output tiles that the queue hands out.");
}

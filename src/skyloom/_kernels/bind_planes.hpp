// Arrays of Python as the planes and maps of a drizzle.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "bind_checks.hpp"
#include "drizzle_planes.hpp"

namespace skyloom::drizzle {

using ReadPlane = nanobind::ndarray<nanobind::ro, nanobind::ndim<2>, nanobind::device::cpu>;
using Map = nanobind::ndarray<const double, nanobind::ndim<3>, nanobind::device::cpu>;

// A view of a plane of shape (ny, nx).
template <class Array>
Plane plane_of(const Array& a, size_t ny, size_t nx) {
  need(a.shape(0) == ny && a.shape(1) == nx, "the planes of a drizzle differ in shape");
  const bool is_double = a.dtype() == nanobind::dtype<double>();
  need(is_double || a.dtype() == nanobind::dtype<float>(), "float32 or float64 planes are needed");
  return {const_cast<void*>(static_cast<const void*>(a.data())), a.stride(0), a.stride(1), is_double};
}

}  // namespace skyloom::drizzle

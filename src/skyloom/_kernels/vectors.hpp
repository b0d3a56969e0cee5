// Short vectors of doubles. Loads and stores take any address.
#pragma once

#include <cstring>
#include <type_traits>

#include "isa.hpp"

namespace skyloom {

typedef double Pair __attribute__((vector_size(16)));
typedef double Quad __attribute__((vector_size(32)));
typedef double Octet __attribute__((vector_size(64)));

// A register that holds so many floats, full of doubles: for bodies that SKYLOOM_DISPATCH_LANES builds.
template <int kFloats>
using VectorOf = std::conditional_t<kFloats == 16, Octet, std::conditional_t<kFloats == 8, Quad, Pair>>;

template <class Vector>
SKYLOOM_INLINE Vector load_vector(const double* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Vector>
SKYLOOM_INLINE void add_to(double* sum, const Vector& part) {
  const Vector total = load_vector<Vector>(sum) + part;
  std::memcpy(sum, &total, sizeof total);
}

}  // namespace skyloom

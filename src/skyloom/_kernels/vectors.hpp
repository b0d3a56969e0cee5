// Short vectors. Loads and stores take any address.
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

// The elements of a and b, in that order, with these indices.
template <int... kIndex, class Vector>
SKYLOOM_INLINE auto shuffle(const Vector& a, const Vector& b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, kIndex...);
#else  // GCC 11
  typedef std::remove_cvref_t<decltype(a[0])> Element;
  typedef Element Result __attribute__((vector_size(sizeof...(kIndex) * sizeof(Element))));
  constexpr int n = sizeof(Vector) / sizeof(Element);
  return Result{(kIndex < n ? a[kIndex % n] : b[kIndex % n])...};
#endif
}

template <class Vector>
SKYLOOM_INLINE Vector load_vector(const double* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The vector of value(0), value(1), ... Written element by element, it would go through memory.
template <class Vector, class Value>
SKYLOOM_INLINE Vector make_vector(Value value) {
  if constexpr (sizeof(Vector) == sizeof(Pair)) {
    return Vector{value(0), value(1)};
  } else if constexpr (sizeof(Vector) == sizeof(Quad)) {
    return Vector{value(0), value(1), value(2), value(3)};
  } else {
    return Vector{value(0), value(1), value(2), value(3), value(4), value(5), value(6), value(7)};
  }
}

template <class Vector>
SKYLOOM_INLINE void add_to(double* sum, const Vector& part) {
  const Vector total = load_vector<Vector>(sum) + part;
  std::memcpy(sum, &total, sizeof total);
}

}  // namespace skyloom

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

template <class Vector>
SKYLOOM_INLINE void add_to(double* sum, const Vector& part) {
  const Vector total = load_vector<Vector>(sum) + part;
  std::memcpy(sum, &total, sizeof total);
}

}  // namespace skyloom

// Discrete Fourier transforms of many lines side by side: every element of a line is a register of so many lines.
#pragma once

#include <cmath>
#include <numbers>
#include <stdexcept>
#include <utility>
#include <vector>

#include "isa.hpp"
#include "vectors.hpp"

namespace skyloom {

inline constexpr int kSpectrumBytes = 64;  // of a register

template <class T>
inline constexpr int kLanes = kSpectrumBytes / static_cast<int>(sizeof(T));

template <class T>
struct RegisterOf {
  typedef T Type __attribute__((vector_size(kSpectrumBytes)));
};
template <class T>
using Register = typename RegisterOf<T>::Type;

template <class T>
struct alignas(kSpectrumBytes) Complex {  // GCC aligns registers to those of the baseline
  Register<T> re, im;
};

// One pass of Stockham's algorithm: radix, how many butterflies differ, and how many of each lie side by side.
struct FourierPass {
  int radix, count, stride;
  std::size_t twiddles;
};

// Passes of radix 4, 2, 3 and 5, and the factors exp(-2 pi i p k / (radix * count)) between them.
template <class T>
struct FourierPlan {
  int n;
  std::vector<FourierPass> passes;
  std::vector<T> twiddles;  // cosine and sine, [p][k = 1 .. radix - 1], pass by pass

  explicit FourierPlan(int length) : n(length) {
    int left = length, stride = 1;
    for (const int radix : {4, 2, 3, 5})
      while (left % radix == 0) {
        const int count = left / radix;
        passes.push_back({radix, count, stride, twiddles.size()});
        for (int p = 0; p < count; ++p)
          for (int k = 1; k < radix; ++k) {
            const double angle = -2 * std::numbers::pi * (static_cast<long long>(p) * k % left) / left;
            twiddles.push_back(static_cast<T>(std::cos(angle)));
            twiddles.push_back(static_cast<T>(std::sin(angle)));
          }
        left = count;
        stride *= radix;
      }
    if (left != 1) throw std::invalid_argument("lengths must be products of 2, 3 and 5");
  }
};

template <class T>
SKYLOOM_INLINE Complex<T> plus(const Complex<T>& a, const Complex<T>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
SKYLOOM_INLINE Complex<T> minus(const Complex<T>& a, const Complex<T>& b) {
  return {a.re - b.re, a.im - b.im};
}
// a - i b, a + i b
template <class T>
SKYLOOM_INLINE Complex<T> minus_i(const Complex<T>& a, const Complex<T>& b) {
  return {a.re + b.im, a.im - b.re};
}
template <class T>
SKYLOOM_INLINE Complex<T> plus_i(const Complex<T>& a, const Complex<T>& b) {
  return {a.re - b.im, a.im + b.re};
}

// The transform of RADIX numbers, in place.
template <int RADIX, class T>
SKYLOOM_INLINE void butterfly(Complex<T>* a) {
  if constexpr (RADIX == 2) {
    const Complex<T> sum = plus(a[0], a[1]);
    a[1] = minus(a[0], a[1]);
    a[0] = sum;
  } else if constexpr (RADIX == 3) {
    const T root = static_cast<T>(std::numbers::sqrt3 / 2);
    const Complex<T> sum = plus(a[1], a[2]), d = minus(a[1], a[2]);
    const Complex<T> even{a[0].re - T(0.5) * sum.re, a[0].im - T(0.5) * sum.im}, odd{root * d.re, root * d.im};
    a[0] = plus(a[0], sum);
    a[1] = minus_i(even, odd);
    a[2] = plus_i(even, odd);
  } else if constexpr (RADIX == 4) {
    const Complex<T> s02 = plus(a[0], a[2]), d02 = minus(a[0], a[2]), s13 = plus(a[1], a[3]), d13 = minus(a[1], a[3]);
    a[0] = plus(s02, s13);
    a[1] = minus_i(d02, d13);
    a[2] = minus(s02, s13);
    a[3] = plus_i(d02, d13);
  } else {
    const T c1 = static_cast<T>(0.30901699437494742410), c2 = static_cast<T>(-0.80901699437494742410);  // of 72, 144 deg
    const T s1 = static_cast<T>(0.95105651629515357212), s2 = static_cast<T>(0.58778525229247312917);
    const Complex<T> s14 = plus(a[1], a[4]), s23 = plus(a[2], a[3]), d14 = minus(a[1], a[4]), d23 = minus(a[2], a[3]);
    const Complex<T> even1{a[0].re + c1 * s14.re + c2 * s23.re, a[0].im + c1 * s14.im + c2 * s23.im};
    const Complex<T> even2{a[0].re + c2 * s14.re + c1 * s23.re, a[0].im + c2 * s14.im + c1 * s23.im};
    const Complex<T> odd1{s1 * d14.re + s2 * d23.re, s1 * d14.im + s2 * d23.im};
    const Complex<T> odd2{s2 * d14.re - s1 * d23.re, s2 * d14.im - s1 * d23.im};
    a[0] = plus(a[0], plus(s14, s23));
    a[1] = minus_i(even1, odd1);
    a[2] = minus_i(even2, odd2);
    a[3] = plus_i(even2, odd2);
    a[4] = plus_i(even1, odd1);
  }
}

// to[q + stride (RADIX p + k)] = w^(p k) sum_j exp(-2 pi i j k / RADIX) from[q + stride (p + count j)]
template <int RADIX, class T>
SKYLOOM_INLINE void fourier_pass(const FourierPass& pass, const T* twiddles, const Complex<T>* __restrict from,
                                 Complex<T>* __restrict to) {
  const int apart = pass.stride * pass.count;
  for (int p = 0; p < pass.count; ++p, twiddles += 2 * (RADIX - 1))
    for (int q = 0; q < pass.stride; ++q) {
      const Complex<T>* in = from + q + pass.stride * p;
      Complex<T>* out = to + q + pass.stride * RADIX * p;
      Complex<T> a[RADIX];
      for (int k = 0; k < RADIX; ++k) a[k] = in[apart * k];
      butterfly<RADIX>(a);
      out[0] = a[0];
      if (p == 0) {
        for (int k = 1; k < RADIX; ++k) out[pass.stride * k] = a[k];
        continue;
      }
      for (int k = 1; k < RADIX; ++k) {
        const T c = twiddles[2 * k - 2], s = twiddles[2 * k - 1];
        out[pass.stride * k] = {a[k].re * c - a[k].im * s, a[k].re * s + a[k].im * c};
      }
    }
}

// Transforms lines of plan.n elements; returns which of both buffers holds the result. With real and imaginary parts
// exchanged, before and after, it is the inverse transform times n.
template <class T>
SKYLOOM_INLINE Complex<T>* fourier(const FourierPlan<T>& plan, Complex<T>* line, Complex<T>* other) {
  for (const FourierPass& pass : plan.passes) {
    const T* twiddles = plan.twiddles.data() + pass.twiddles;
    switch (pass.radix) {
      case 2: fourier_pass<2>(pass, twiddles, line, other); break;
      case 3: fourier_pass<3>(pass, twiddles, line, other); break;
      case 4: fourier_pass<4>(pass, twiddles, line, other); break;
      default: fourier_pass<5>(pass, twiddles, line, other);
    }
    std::swap(line, other);
  }
  return line;
}

// Exchanges rows and columns of a square of registers: log2 of its side times a perfect shuffle of the rows.
template <class T>
SKYLOOM_INLINE void transpose(Register<T>* rows) {
  constexpr int N = kLanes<T>;
  Register<T> next[N];
  for (int step = 1; step < N; step *= 2) {
    for (int k = 0; k < N / 2; ++k) {
      const Register<T> a = rows[k], b = rows[k + N / 2];
      if constexpr (N == 16) {
        next[2 * k] = shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b);
        next[2 * k + 1] = shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
      } else {
        next[2 * k] = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
        next[2 * k + 1] = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
      }
    }
    for (int k = 0; k < N; ++k) rows[k] = next[k];
  }
}

}  // namespace skyloom

// Run-time choice of the vector instruction set.
//
// A kernel is written once, as an always-inlined body. SKYLOOM_DISPATCH builds that body for each instruction set
// and calls the widest one that this processor has. SKYLOOM_SIMD=baseline|avx2|avx512 in the environment caps
// the choice, which is how the tests hold the variants against one another.
#pragma once

namespace skyloom {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

// The instruction set that the kernels of this process use. Read once, from the processor and the environment.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace skyloom

#define SKYLOOM_INLINE inline __attribute__((always_inline))

// SKYLOOM_DISPATCH(void, fill_band, (float* out, int n), (out, n)) defines fill_band, given fill_band_body.
// SKYLOOM_DISPATCH_LANES does the same, given fill_band_body<LANES>, LANES being the number of floats that one register of
// the instruction set holds.
#define SKYLOOM_DISPATCH(RET, NAME, PARAMS, ARGS) \
  SKYLOOM_DISPATCH_BODIES(RET, NAME, PARAMS, ARGS, NAME##_body, NAME##_body, NAME##_body)
#define SKYLOOM_DISPATCH_LANES(RET, NAME, PARAMS, ARGS) \
  SKYLOOM_DISPATCH_BODIES(RET, NAME, PARAMS, ARGS, NAME##_body<16>, NAME##_body<8>, NAME##_body<4>)

#ifdef __clang__
#define SKYLOOM_AVX512 target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi2"), min_vector_width(512)
#else
#define SKYLOOM_AVX512 target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define SKYLOOM_DISPATCH_BODIES(RET, NAME, PARAMS, ARGS, BODY16, BODY8, BODY4)                            \
  __attribute__((SKYLOOM_AVX512)) static RET NAME##_avx512 PARAMS { return BODY16 ARGS; }                 \
  __attribute__((target("avx2,fma,bmi2"))) static RET NAME##_avx2 PARAMS { return BODY8 ARGS; }           \
  static RET NAME##_baseline PARAMS { return BODY4 ARGS; }                                                \
  RET NAME PARAMS {                                                                                       \
    switch (skyloom::current_isa()) {                                                                     \
      case skyloom::Isa::avx512: return NAME##_avx512 ARGS;                                               \
      case skyloom::Isa::avx2: return NAME##_avx2 ARGS;                                                   \
      default: return NAME##_baseline ARGS;                                                               \
    }                                                                                                     \
  }
#else
#define SKYLOOM_DISPATCH_BODIES(RET, NAME, PARAMS, ARGS, BODY16, BODY8, BODY4)                            \
  RET NAME PARAMS { return BODY4 ARGS; }
#endif

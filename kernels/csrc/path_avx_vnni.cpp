// AVX-VNNI: the registers of AVX2, with vpdpbusd in the place of two instructions.
//
// The same code is compiled twice: as AVX-VNNI proper, and with the encoding of AVX-512VL for processors that have
// only that one.
#include "rounding.h"
#include "ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

#define INLINE __attribute__((always_inline))

namespace frankenlm {
namespace {

namespace vex {
#define TARGET __attribute__((target("avx2,f16c,avxvnni")))
#include "path_avx2.inc"
TARGET INLINE V multiply_add(V sum, V plane, V x) {
  sum = _mm256_dpbusd_avx_epi32(sum, plane, x);
  asm("" : "+x"(sum));  // else the compiler copies every sum to and fro
  return sum;
}
#include "planes_avx_vnni.inc"
#undef TARGET
}  // namespace vex

namespace evex {
#define TARGET __attribute__((target("avx2,f16c,avx512vl,avx512vnni")))
#include "path_avx2.inc"
TARGET INLINE V multiply_add(V sum, V plane, V x) {
  sum = _mm256_dpbusd_epi32(sum, plane, x);
  asm("" : "+x"(sum));  // else the compiler copies every sum to and fro
  return sum;
}
#include "planes_avx_vnni.inc"
#undef TARGET
}  // namespace evex

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

// The compiler's own list has no name for AVX-VNNI before gcc 13: leaf 7, subleaf 1, EAX bit 4.
bool has_vex() {
  uint32_t a = 7, b = 0, c = 1, d = 0;
  if (!has_avx2()) return false;
  asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return a >> 4 & 1;
}

bool has_evex() {
  return has_avx2() && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

void ternary(const Panel& p, const TernaryWeight& w, long first, long last, float* y, long y_stride) {
  static const bool vex = has_vex();
  (vex ? vex::ternary : evex::ternary)(p, w, first, last, y, y_stride);
}

bool available() { return has_vex() || has_evex(); }

}  // namespace

const Path kAvxVnni = {"avx_vnni", available, vex::widen, vex::narrow, vex::quantize, ternary, vex::int8};

}  // namespace frankenlm
#endif

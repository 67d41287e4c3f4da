// AVX2: vpmaddubsw multiplies pairs into 16 bits, which are widened before they can overflow.
#include "rounding.h"
#include "ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,f16c")))
#define INLINE __attribute__((always_inline))

namespace frankenlm {
namespace {

#include "path_avx2.inc"

constexpr long kBlocksPerSum = 16;  // 64 products of at most 512: 32768, which as -32768 is the lowest int16

TARGET INLINE V multiply_add(V sum, V plane, V x) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(plane, x));
  asm("" : "+x"(sum));  // else the compiler adds up products first, and has no registers left to hold them
  return sum;
}
TARGET INLINE V widened(V sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

#include "parts.inc"

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

}  // namespace

const Path kAvx2 = {"avx2", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

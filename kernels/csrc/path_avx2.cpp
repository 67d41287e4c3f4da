// AVX2: vpmaddubsw multiplies pairs into 16 bits, which are widened before they can overflow.
#include "rounding.h"
#include "ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

#define TARGET __attribute__((target("avx2,f16c")))
#define INLINE __attribute__((always_inline))

namespace frankenlm {
namespace {

#include "path_avx2.inc"

constexpr long kBlocksPerSum = 16;  // 64 products of at most 512: 32768, which as -32768 is the lowest int16
constexpr bool kSumsAreExact = false;

TARGET INLINE V multiply_add(V sum, V plane, V x) {
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(plane, x));
  asm("" : "+x"(sum));  // else the compiler adds up products first, and has no registers left to hold them
  return sum;
}
TARGET INLINE V widened(V sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

#include "parts.inc"

constexpr int kPartsOfOneToken = 2, kPartsOfTwoTokens = 2;

TARGET INLINE V codes_at(char mask) { return _mm256_set1_epi8(mask); }
TARGET INLINE V masked(V bits, V mask) { return _mm256_and_si256(bits, mask); }
TARGET INLINE V shift_four(V a) { return _mm256_srli_epi16(a, 4); }
TARGET INLINE V folded(V even, V odd) { return _mm256_add_epi16(even, _mm256_srai_epi16(odd, 2)); }

#include "in_place.inc"

template <Scales S>
constexpr Ternary* kKernels[kPanelTokens] = {by_parts_in_place<S, 1>, by_parts_in_place<S, 2>, by_parts<S, 3>,
                                             by_parts<S, 4>,          by_parts<S, 3, 2>,       by_parts<S, 3, 3>,
                                             by_parts<S, 4, 3>,       by_parts<S, 4, 4>};

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  Ternary* const* kernels[] = {kKernels<Scales::of_rows>, kKernels<Scales::bfloat16_of_groups>,
                               kKernels<Scales::float16_of_groups>};
  kernels[static_cast<int>(scales_of(w))][p.tokens - 1](p, w, first_tile, last_tile, y, y_stride);
}

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

}  // namespace

const Path kAvx2 = {"avx2", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

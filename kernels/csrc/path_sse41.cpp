// SSE4.1: as AVX2, with registers of 4 rows.
#include "rounding.h"
#include "ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

#define TARGET __attribute__((target("sse4.1")))
#define INLINE __attribute__((always_inline))

namespace frankenlm {
namespace {

using V = __m128i;
constexpr long kRowsPerPart = 4;
constexpr long kBlocksPerSum = 16;  // 64 products of at most 512: 32768, which as -32768 is the lowest int16
constexpr bool kSumsAreExact = false;

TARGET INLINE V load_part(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
TARGET INLINE void store_register(void* p, V v) { _mm_store_si128(static_cast<__m128i*>(p), v); }
TARGET INLINE V zero() { return _mm_setzero_si128(); }
TARGET INLINE V low_codes(V a) { return _mm_and_si128(a, _mm_set1_epi8(3)); }
TARGET INLINE V shift_two(V a) { return _mm_srli_epi16(a, 2); }
TARGET INLINE V broadcast_sum(const int32_t* sum) { return _mm_set1_epi32(*sum); }
TARGET INLINE void add_to(int32_t* total, V sum) {
  auto* to = reinterpret_cast<__m128i*>(total);
  _mm_store_si128(to, _mm_add_epi32(_mm_load_si128(to), sum));
}
TARGET INLINE void add_scaled(float* total, V sum, const float* scale) {
  const __m128 product = _mm_mul_ps(_mm_cvtepi32_ps(sum), _mm_load_ps(scale));
  _mm_store_ps(total, _mm_add_ps(_mm_load_ps(total), product));
}
TARGET INLINE V multiply_add(V sum, V plane, V x) {
  sum = _mm_add_epi16(sum, _mm_maddubs_epi16(plane, x));
  asm("" : "+x"(sum));  // else the compiler adds up products first, and has no registers left to hold them
  return sum;
}
TARGET INLINE V widened(V sum) { return _mm_madd_epi16(sum, _mm_set1_epi16(1)); }

TARGET INLINE V broadcast(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, sizeof(four));
  return _mm_set1_epi32(four);
}

// As from_float16, four at once.
TARGET INLINE V widened_halves(V halves) {
  const V rest = _mm_and_si128(halves, _mm_set1_epi32(0x7fff)), shifted = _mm_slli_epi32(rest, 13);
  const V tiny = _mm_castps_si128(_mm_mul_ps(_mm_cvtepi32_ps(rest), _mm_set1_ps(0x1p-24f)));
  const V normal = _mm_add_epi32(shifted, _mm_set1_epi32((127 - 15) << 23));
  const V special = _mm_or_si128(shifted, _mm_set1_epi32(kInfinityBits));
  V wide = _mm_blendv_epi8(tiny, normal, _mm_cmpgt_epi32(rest, _mm_set1_epi32(0x03ff)));
  wide = _mm_blendv_epi8(wide, special, _mm_cmpgt_epi32(rest, _mm_set1_epi32(0x7bff)));
  return _mm_or_si128(wide, _mm_slli_epi32(_mm_srli_epi32(halves, 15), 31));
}

TARGET INLINE void load_scales(const uint16_t* halves, Dtype dtype, float* out) {
  const V raw = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(halves)));
  const V wide = dtype == Dtype::float16 ? widened_halves(raw) : _mm_slli_epi32(raw, 16);
  _mm_store_ps(out, _mm_castsi128_ps(wide));
}

// y = float(sum) * (step * scale) + bias for 4 rows of one token, fewer at the weight's end.
TARGET INLINE void store_part(const int32_t* sum, const Panel& p, int token, const TernaryWeight& w, long row, float* y) {
  const long rows = w.rows - row;
  const float step = p.step[token];
  const int32_t correction = p.sum[token];
  if (rows < kRowsPerPart) return store_rest(sum, rows, correction, step, w, row, y);
  const V exact = _mm_sub_epi32(_mm_load_si128(reinterpret_cast<const V*>(sum)), _mm_set1_epi32(correction));
  const __m128 factor = _mm_mul_ps(_mm_set1_ps(step), _mm_loadu_ps(w.scale + row));
  __m128 out = _mm_mul_ps(_mm_cvtepi32_ps(exact), factor);
  if (w.bias) out = _mm_add_ps(out, _mm_loadu_ps(w.bias + row));
  _mm_storeu_ps(y + row, out);
}

// y = step * total + bias, with scales per group.
TARGET INLINE void store_part(const float* total, const Panel& p, int token, const TernaryWeight& w, long row, float* y) {
  const long rows = w.rows - row;
  if (rows < kRowsPerPart) return store_rest(total, rows, p.step[token], w, row, y);
  __m128 out = _mm_mul_ps(_mm_set1_ps(p.step[token]), _mm_load_ps(total));
  if (w.bias) out = _mm_add_ps(out, _mm_loadu_ps(w.bias + row));
  _mm_storeu_ps(y + row, out);
}

#include "parts.inc"

// At most 3 tokens at once: a product overwrites its plane here, and copies need registers too.
template <bool Grouped>
constexpr Ternary* kKernels[kPanelTokens] = {
    by_parts<Grouped, 4, 1>,    by_parts<Grouped, 2, 2>,    by_parts<Grouped, 2, 3>,       by_parts<Grouped, 2, 2, 2>,
    by_parts<Grouped, 2, 3, 2>, by_parts<Grouped, 2, 3, 3>, by_parts<Grouped, 2, 3, 2, 2>, by_parts<Grouped, 2, 3, 3, 2>};

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  const auto* kernels = w.group_blocks ? kKernels<true> : kKernels<false>;
  kernels[p.tokens - 1](p, w, first_tile, last_tile, y, y_stride);
}

TARGET INLINE int32_t total_of(V v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1));
  return _mm_cvtsi128_si32(v);
}

TARGET void quantize(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step,
                     int32_t* sum) {
  const long whole = inputs / kBlock, blocks = blocks_of(inputs);
  alignas(16) float rest[kBlock] = {};
  std::memcpy(rest, x + whole * kBlock, (inputs - whole * kBlock) * sizeof(float));
  const auto block = [&](long b) { return b < whole ? x + b * kBlock : rest; };
  const __m128 magnitude = _mm_castsi128_ps(_mm_set1_epi32(0x7fffffff));
  V largest = zero();
  __m128d low = _mm_setzero_pd(), high = low;
  for (long b = 0; b < blocks; ++b)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m128 v = _mm_loadu_ps(block(b) + 4 * i);
      largest = _mm_max_epi32(largest, _mm_castps_si128(_mm_and_ps(v, magnitude)));
      if (norm_eps > 0) {
        const __m128d a = _mm_cvtps_pd(v), b = _mm_cvtps_pd(_mm_movehl_ps(v, v));
        low = _mm_add_pd(low, _mm_mul_pd(a, a));
        high = _mm_add_pd(high, _mm_mul_pd(b, b));
      }
    }
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0x4e));
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0xb1));
  const __m128d two = _mm_add_pd(low, high);
  const double squares = _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  const Rounding rounding = rounding_of(_mm_cvtsi128_si32(largest), squares, inputs, norm_eps);
  *step = rounding.step;
  if (!rounding.finite) return clear_codes(codes, stride, blocks, sum);
  const __m128 r = _mm_set1_ps(rounding.inverse_rms), multiplier = _mm_set1_ps(rounding.multiplier);
  V total = zero();
  for (long b = 0; b < blocks; ++b) {
    V rounded[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m128 v = _mm_mul_ps(_mm_mul_ps(_mm_loadu_ps(block(b) + 4 * i), r), multiplier);
      rounded[i] = _mm_cvtps_epi32(v);
      total = _mm_add_epi32(total, rounded[i]);
    }
    const V bytes = _mm_packs_epi16(_mm_packs_epi32(rounded[0], rounded[1]), _mm_packs_epi32(rounded[2], rounded[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + b * stride), bytes);
  }
  *sum = total_of(total);
}

// 16-bit products: 8-bit ones would saturate at 255 * 127 * 2.
TARGET void int8(const int8_t* codes, float step, const Int8Weight& w, long first, long last, float* y) {
  const auto wide = [](const int8_t* p) TARGET INLINE {
    return _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  };
  for (long row = first; row < last; ++row) {
    const int8_t* line = w.codes + row * w.inputs;
    V sum = zero();
    long k = 0;
    for (; k + 8 <= w.inputs; k += 8) sum = _mm_add_epi32(sum, _mm_madd_epi16(wide(codes + k), wide(line + k)));
    int32_t exact = total_of(sum);
    for (; k < w.inputs; ++k) exact += codes[k] * line[k];
    y[row] = scaled(exact, step, w.scale[row], w.bias ? w.bias + row : nullptr);
  }
}

void widen(const void* x, Dtype dtype, long count, float* out) { kScalar.widen(x, dtype, count, out); }
void narrow(const float* x, Dtype dtype, long count, void* out) { kScalar.narrow(x, dtype, count, out); }

bool available() { return __builtin_cpu_supports("sse4.1"); }

}  // namespace

const Path kSse41 = {"sse41", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

// AVX-512 with VNNI: a tile is one register, vpdpbusd multiplies 4 inputs of 16 rows.
#include "ternary.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "rounding.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE __attribute__((always_inline)) inline

namespace frankenlm {
namespace {

constexpr int kTokensOfPlanes = 2;

// Keeps `value` in a register from here on. Without it the compiler moves accumulators to the stack inside the loop.
#define PIN(value) asm volatile("" : "+v"(value))

// Four codes of a token for all 16 rows. Written as one load of its own: folded into each vpdpbusd it would be
// loaded again for every tile.
TARGET INLINE __m512i broadcast(const int8_t* codes) {
  __m512i out;
  asm("vpbroadcastd %1, %0" : "=v"(out) : "m"(*reinterpret_cast<const int32_t*>(codes)));
  return out;
}

// The lowest code of each byte. The mask comes from memory: 24 sums, 3 tiles, 3 planes and the activations leave it no
// register.
TARGET INLINE __m512i low_codes(__m512i tiled) {
  static const int32_t mask = 0x03030303;
  __m512i out;
  asm("vpandd %2%{1to16%}, %1, %0" : "=v"(out) : "v"(tiled), "m"(mask));
  return out;
}

TARGET INLINE __mmask16 mask_of(long rows) { return rows >= 16 ? 0xffff : static_cast<__mmask16>((1u << rows) - 1); }

// y = float(sum) * (step * scale) + bias for 16 rows of one token.
TARGET INLINE void store(__m512i sum, int32_t correction, float step, const TernaryWeight& w, long row, float* y) {
  const __mmask16 mask = mask_of(w.rows - row);
  const __m512i exact = _mm512_sub_epi32(sum, _mm512_set1_epi32(correction));
  const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(step), _mm512_maskz_loadu_ps(mask, w.scale + row));
  __m512 out = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), factor);
  if (w.bias) out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(mask, w.bias + row));
  _mm512_mask_storeu_ps(y + row, mask, out);
}

// y = step * total + bias, with scales per group.
TARGET INLINE void store(__m512 total, float step, const TernaryWeight& w, long row, float* y) {
  const __mmask16 mask = mask_of(w.rows - row);
  __m512 out = _mm512_mul_ps(_mm512_set1_ps(step), total);
  if (w.bias) out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(mask, w.bias + row));
  _mm512_mask_storeu_ps(y + row, mask, out);
}

// Blocks [first, last) of a few tiles, `stride` bytes from each other, the first at `line`, times a whole panel: exact
// sums, which begin with `start` [token] where there is one.
template <int Tiles, int Tokens>
using Sums = __m512i (&)[Tiles][Tokens];

TARGET INLINE __m512i first_sum(const int32_t* start, int token) {
  return start ? _mm512_set1_epi32(start[token]) : _mm512_setzero_si512();
}

// One or two tokens: each plane of codes (2 bits wide, 2 g bits up) is masked where it stands and summed apart, so
// nothing is shifted in the loop; the sums, 4^g times too large, are shifted back exactly at the end.
template <int Tiles, int Tokens>
TARGET INLINE void planes(const Panel& p, const uint8_t* line, long stride, long first, long last, const int32_t* start,
                          Sums<Tiles, Tokens> exact) {
  __m512i sum[Tiles][Tokens][4];
#pragma GCC unroll 32
  for (int i = 0; i < Tiles * Tokens * 4; ++i)
    (&sum[0][0][0])[i] = i % 4 == 0 ? first_sum(start, i / 4 % Tokens) : _mm512_setzero_si512();
  const __m512i mask[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                           _mm512_set1_epi8(static_cast<char>(0xc0))};
  line += first * kTileBytes;
  const int8_t* codes = p.codes + first * Tokens * kBlock;
  for (long b = first; b < last; ++b, line += kTileBytes, codes += Tokens * kBlock) {
    __m512i x[Tokens][4];
#pragma GCC unroll 4
    for (int m = 0; m < Tokens; ++m)
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) x[m][g] = broadcast(codes + m * kBlock + 4 * g);
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) {
      const __m512i tiled = _mm512_loadu_si512(line + t * stride);
      _mm_prefetch(reinterpret_cast<const char*>(line + t * stride + kAhead), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const __m512i plane = _mm512_and_si512(tiled, mask[g]);
#pragma GCC unroll 4
        for (int m = 0; m < Tokens; ++m) sum[t][m][g] = _mm512_dpbusd_epi32(sum[t][m][g], plane, x[m][g]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Tiles * Tokens * 4; ++i) PIN((&sum[0][0][0])[i]);
#pragma GCC unroll 4
  for (int t = 0; t < Tiles; ++t)
#pragma GCC unroll 4
    for (int m = 0; m < Tokens; ++m) {
      const __m512i low = _mm512_add_epi32(sum[t][m][0], _mm512_srai_epi32(sum[t][m][1], 2));
      const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(sum[t][m][2], 4), _mm512_srai_epi32(sum[t][m][3], 6));
      exact[t][m] = _mm512_add_epi32(low, high);
    }
}

// Three tokens and more: codes are shifted down once and serve every token.
template <int Tiles, int Tokens>
TARGET INLINE void shifted(const Panel& p, const uint8_t* line, long stride, long first, long last, const int32_t* start,
                           Sums<Tiles, Tokens> sum) {
#pragma GCC unroll 24
  for (int i = 0; i < Tiles * Tokens; ++i) (&sum[0][0])[i] = first_sum(start, i % Tokens);
  line += first * kTileBytes;
  const int8_t* codes = p.codes + first * Tokens * kBlock;
  for (long b = first; b < last; ++b, line += kTileBytes, codes += Tokens * kBlock) {
    __m512i tiled[Tiles];
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) tiled[t] = _mm512_loadu_si512(line + t * stride);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      __m512i plane[Tiles];
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) {
        plane[t] = low_codes(tiled[t]);
        if (g < 3) tiled[t] = _mm512_srli_epi16(tiled[t], 2);
      }
#pragma GCC unroll 8
      for (int m = 0; m < Tokens; ++m) {
        const __m512i x = broadcast(codes + m * kBlock + 4 * g);
#pragma GCC unroll 4
        for (int t = 0; t < Tiles; ++t) sum[t][m] = _mm512_dpbusd_epi32(sum[t][m], plane[t], x);
      }
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < Tiles * Tokens; ++i) PIN((&sum[0][0])[i]);
}

template <int Tiles, int Tokens>
TARGET INLINE void sums(const Panel& p, const uint8_t* line, long stride, long first, long last, const int32_t* start,
                        Sums<Tiles, Tokens> exact) {
  if constexpr (Tokens <= kTokensOfPlanes)
    planes<Tiles, Tokens>(p, line, stride, first, last, start, exact);
  else
    shifted<Tiles, Tokens>(p, line, stride, first, last, start, exact);
}

TARGET INLINE __m512 scales_at(const uint16_t* halves, Dtype dtype) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
  return dtype == Dtype::float16 ? _mm512_cvtph_ps(raw)
                                 : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// Tile t of Tiles is number `tile` + t * `apart` of the weight.
template <bool Grouped, int Tiles, int Tokens>
TARGET INLINE void tiles(const Panel& p, const TernaryWeight& w, long tile, long apart, float* y, long y_stride) {
  const uint8_t* line = w.tiles + tile * w.blocks * kTileBytes;
  const long stride = apart * w.blocks * kTileBytes;
  __m512i exact[Tiles][Tokens];
  if constexpr (!Grouped) {
    sums<Tiles, Tokens>(p, line, stride, 0, w.blocks, nullptr, exact);
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t)
#pragma GCC unroll 8
      for (int m = 0; m < Tokens; ++m)
        store(exact[t][m], p.sum[m], p.step[m], w, (tile + t * apart) * kTileRows, y + m * y_stride);
  } else {
    // In memory: the sums need the registers.
    alignas(64) float total[Tiles][Tokens][kTileRows];
#pragma GCC unroll 24
    for (int i = 0; i < Tiles * Tokens; ++i) _mm512_store_ps((&total[0][0])[i], _mm512_setzero_ps());
    const uint16_t* halves = w.scales_of(tile, 0);
    const long halves_stride = apart * w.groups() * kTileRows;
    const int32_t* start = p.group_offset;
    for (long first = 0; first < w.blocks; first += w.group_blocks, halves += kTileRows, start += Tokens) {
      const long last = first + w.group_blocks < w.blocks ? first + w.group_blocks : w.blocks;
      sums<Tiles, Tokens>(p, line, stride, first, last, start, exact);
      asm volatile("" : : "r"(total) : "memory");
      __m512 scale[Tiles];
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; ++t) scale[t] = scales_at(halves + t * halves_stride, w.group_dtype);
      // In the order in which the sums are ready.
#pragma GCC unroll 8
      for (int m = 0; m < Tokens; ++m)
#pragma GCC unroll 4
        for (int t = 0; t < Tiles; ++t) {
          const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(exact[t][m]), scale[t]);
          _mm512_store_ps(total[t][m], _mm512_add_ps(_mm512_load_ps(total[t][m]), product));
        }
    }
    for (int t = 0; t < Tiles; ++t)
      for (int m = 0; m < Tokens; ++m)
        store(_mm512_load_ps(total[t][m]), p.step[m], w, (tile + t * apart) * kTileRows, y + m * y_stride);
  }
}

// Fewer than Tiles + 1 tiles.
template <bool Grouped, int Tiles, int Tokens>
TARGET void few(const Panel& p, const TernaryWeight& w, long tile, long left, float* y, long y_stride) {
  if constexpr (Tiles > 0) {
    if (left < Tiles) return few<Grouped, Tiles - 1, Tokens>(p, w, tile, left, y, y_stride);
    tiles<Grouped, Tiles, Tokens>(p, w, tile, 1, y, y_stride);
  }
}

// As many tiles at a time as the registers hold, then what is left over. The tiles of one pass are taken from as many
// equal parts of the range, so that each part is read from end to end: the processor fetches ahead on a few long streams
// and not on many short ones, which from DRAM is nearly twice as fast. One token, which waits for memory, takes two: four
// are a twentieth faster in the cache, and slower by more than that from DRAM.
template <bool Grouped, int Tiles, int Tokens>
TARGET void all(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  const long apart = (last_tile - first_tile) / Tiles, rest = first_tile + apart * Tiles;
  for (long i = 0; i < apart; ++i) tiles<Grouped, Tiles, Tokens>(p, w, first_tile + i, apart, y, y_stride);
  few<Grouped, Tiles - 1, Tokens>(p, w, rest, last_tile - rest, y, y_stride);
}

template <bool Grouped>
constexpr decltype(&all<Grouped, 2, 1>) kKernels[kPanelTokens] = {
    all<Grouped, 2, 1>, all<Grouped, 2, 2>, all<Grouped, 4, 3>, all<Grouped, 4, 4>,
    all<Grouped, 4, 5>, all<Grouped, 3, 6>, all<Grouped, 3, 7>, all<Grouped, 3, 8>};

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  const auto* kernels = w.group_blocks ? kKernels<true> : kKernels<false>;
  kernels[p.tokens - 1](p, w, first_tile, last_tile, y, y_stride);
}

TARGET INLINE void add_squares(__m512 v, __m512d& low, __m512d& high) {
  const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  low = _mm512_add_pd(low, _mm512_mul_pd(a, a));
  high = _mm512_add_pd(high, _mm512_mul_pd(b, b));
}

TARGET void quantize(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step,
                     int32_t* sum) {
  const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
  const long whole = inputs / kBlock;
  const __mmask16 tail = mask_of(inputs % kBlock);
  __m512i largest = _mm512_setzero_si512();
  __m512d low = _mm512_setzero_pd(), high = low;
  if (norm_eps <= 0) {
    // Two maxima at once: one would wait for itself.
    __m512i other = _mm512_setzero_si512();
    long b = 0;
    for (; b + 2 <= whole; b += 2) {
      largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_loadu_si512(x + b * kBlock), magnitude_bits));
      other = _mm512_max_epi32(other, _mm512_and_si512(_mm512_loadu_si512(x + (b + 1) * kBlock), magnitude_bits));
    }
    if (b < whole)
      largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_loadu_si512(x + b * kBlock), magnitude_bits));
    largest = _mm512_max_epi32(largest, other);
  } else {
    for (long b = 0; b < whole; ++b) {
      const __m512 v = _mm512_loadu_ps(x + b * kBlock);
      largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(v), magnitude_bits));
      add_squares(v, low, high);
    }
  }
  if (tail) {
    const __m512 v = _mm512_maskz_loadu_ps(tail, x + whole * kBlock);
    largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(v), magnitude_bits));
    add_squares(v, low, high);
  }
  const double squares = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  const Rounding rounding = rounding_of(_mm512_reduce_max_epi32(largest), squares, inputs, norm_eps);
  *step = rounding.step;
  const long blocks = blocks_of(inputs);
  if (!rounding.finite) return clear_codes(codes, stride, blocks, sum);
  const __m512 r = _mm512_set1_ps(rounding.inverse_rms), multiplier = _mm512_set1_ps(rounding.multiplier);
  __m512i total = _mm512_setzero_si512();
  for (long b = 0; b < blocks; ++b) {
    __m512 v = b < whole ? _mm512_loadu_ps(x + b * kBlock) : _mm512_maskz_loadu_ps(tail, x + b * kBlock);
    if (norm_eps > 0) v = _mm512_mul_ps(v, r);
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(v, multiplier));
    total = _mm512_add_epi32(total, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + b * stride), _mm512_cvtsepi32_epi8(rounded));
  }
  *sum = _mm512_reduce_add_epi32(total);
}

TARGET void widen(const void* x, Dtype dtype, long count, float* out) {
  const auto* halves = static_cast<const uint16_t*>(x);
  for (long i = 0; i < count; i += 16) {
    const __mmask16 mask = mask_of(count - i);
    const __m256i raw = _mm256_maskz_loadu_epi16(mask, halves + i);
    const __m512 wide = dtype == Dtype::float16
                            ? _mm512_cvtph_ps(raw)
                            : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    _mm512_mask_storeu_ps(out + i, mask, wide);
  }
}

TARGET void narrow(const float* x, Dtype dtype, long count, void* out) {
  auto* halves = static_cast<uint16_t*>(out);
  const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
  for (long i = 0; i < count; i += 16) {
    const __mmask16 mask = mask_of(count - i);
    const __m512 wide = _mm512_maskz_loadu_ps(mask, x + i);
    __m256i raw;
    if (dtype == Dtype::float16) {
      raw = _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      const __m512i bits = _mm512_castps_si512(wide);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
      __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(half, odd)), 16);
      const __mmask16 nan = _mm512_cmp_ps_mask(wide, wide, _CMP_UNORD_Q);
      rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(kBfloat16Nan));
      raw = _mm512_cvtepi32_epi16(rounded);
    }
    _mm256_mask_storeu_epi16(halves + i, mask, raw);
  }
}

// Four rows, `apart` rows from each other, share the loads of the activations. vpdpbusd wants one side unsigned:
// activations are offset by 128, and the rows' own sums, taken alongside, take the offset back.
template <int Rows>
TARGET void int8_rows(const int8_t* codes, float step, const Int8Weight& w, long row, long apart, float* y) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80)), ones = _mm512_set1_epi8(1);
  __m512i sum[Rows], weights[Rows];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) sum[r] = weights[r] = _mm512_setzero_si512();
  const int8_t* first = w.codes + row * w.inputs;
  const long stride = apart * w.inputs;
  long k = 0;
  for (; k + 64 <= w.inputs; k += 64) {
    const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(codes + k), offset);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m512i line = _mm512_loadu_si512(first + r * stride + k);
      _mm_prefetch(reinterpret_cast<const char*>(first + r * stride + k + kAhead), _MM_HINT_T0);
      sum[r] = _mm512_dpbusd_epi32(sum[r], x, line);
      weights[r] = _mm512_dpbusd_epi32(weights[r], ones, line);
    }
  }
  if (k < w.inputs) {
    const __mmask64 tail = (1ull << (w.inputs - k)) - 1;
    const __m512i x = _mm512_xor_si512(_mm512_maskz_loadu_epi8(tail, codes + k), offset);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m512i line = _mm512_maskz_loadu_epi8(tail, first + r * stride + k);
      sum[r] = _mm512_dpbusd_epi32(sum[r], x, line);
      weights[r] = _mm512_dpbusd_epi32(weights[r], ones, line);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const int32_t exact = _mm512_reduce_add_epi32(_mm512_sub_epi32(sum[r], _mm512_slli_epi32(weights[r], 7)));
    const long at = row + r * apart;
    y[at] = scaled(exact, step, w.scale[at], w.bias ? w.bias + at : nullptr);
  }
}

void int8(const int8_t* codes, float step, const Int8Weight& w, long first, long last, float* y) {
  const long apart = (last - first) / 4;
  for (long i = 0; i < apart; ++i) int8_rows<4>(codes, step, w, first + i, apart, y);
  for (long row = first + 4 * apart; row < last; ++row) int8_rows<1>(codes, step, w, row, 1, y);
}

bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Path kAvx512Vnni = {"avx512_vnni", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

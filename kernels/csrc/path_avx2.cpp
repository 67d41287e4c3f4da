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

// One or two tokens: unpacking, which more tokens would share, must be cheap. A plane of codes is masked where it stands,
// and the upper two after one shift for both. The odd planes are then 4 times too large, and are summed apart from the
// even ones. Two tiles take turns, chunk by chunk: the weight is read in two long streams.

// Blocks after which a 16-bit sum of odd planes, 4 * 2 * 2 * 128 in each of 2 planes of a block, is full.
constexpr long kBlocksInPlace = 8;
static_assert(kBlocksInPlace >= kMaxGroupBlocks, "a group is one sum");

// Stream s of Streams is tile number `tile` + s * `apart` of the weight.
template <Scales S, int Tokens, int Streams>
TARGET __attribute__((noinline)) void in_place(const Panel& p, const TernaryWeight& w, long tile, long apart, float* y,
                                               long y_stride) {
  constexpr bool Grouped = S != Scales::of_rows;
  constexpr int kTotals = 2 * Tokens * kRowsPerPart;  // of a tile
  const uint8_t* lines = w.tiles + tile * w.blocks * kTileBytes;
  const long stride = apart * w.blocks * kTileBytes;
  const int8_t* chunk_codes = p.codes;
  const uint16_t* halves = Grouped ? w.scales_of(tile, 0) : nullptr;
  const long halves_stride = Grouped ? apart * w.groups() * kTileRows : 0;
  const int32_t* start = p.group_halves;
  const long chunk = Grouped ? w.group_blocks : kBlocksInPlace;
  V even_mask = _mm256_set1_epi8(0x03), odd_mask = _mm256_set1_epi8(0x0c);
  asm("" : "+x"(even_mask), "+x"(odd_mask));  // else they are loaded wherever they are used
  alignas(64) Total<Grouped> totals[Streams * kTotals];
  clear<Streams * kTotals>(totals);
  for (long left = w.blocks; left > 0; left -= chunk) {
    const long blocks = left < chunk ? left : chunk;
    for (int s = 0; s < Streams; ++s) {
      const uint8_t* line = lines + s * stride;
      const int8_t* codes = chunk_codes;
      V even[2][Tokens], odd[2][Tokens];
#pragma GCC unroll 4
      for (int i = 0; i < 2 * Tokens; ++i) {
        (&even[0][0])[i] = Grouped ? broadcast_sum(start + i % Tokens) : zero();
        (&odd[0][0])[i] = zero();
      }
      long b = blocks;  // at least 1
      do {
        V bits[2] = {load_part(line), load_part(line + sizeof(V))};
        _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
          if (g == 2) bits[0] = _mm256_srli_epi16(bits[0], 4), bits[1] = _mm256_srli_epi16(bits[1], 4);
#pragma GCC unroll 2
          for (int m = 0; m < Tokens; ++m) {
            const V x = broadcast(codes + m * kBlock + 4 * g);
#pragma GCC unroll 2
            for (int t = 0; t < 2; ++t) {
              V& sum = g % 2 ? odd[t][m] : even[t][m];
              sum = multiply_add(sum, _mm256_and_si256(bits[t], g % 2 ? odd_mask : even_mask), x);
            }
          }
        }
        line += kTileBytes;
        codes += Tokens * kBlock;
      } while (--b);
#pragma GCC unroll 4
      for (int i = 0; i < 2 * Tokens; ++i) asm volatile("" : "+x"((&even[0][0])[i]), "+x"((&odd[0][0])[i]));
#pragma GCC unroll 2
      for (int t = 0; t < 2; ++t) {
        alignas(64) float scale[kRowsPerPart];
        if constexpr (Grouped) load_scales(halves + s * halves_stride + t * kRowsPerPart, dtype_of(S), scale);
#pragma GCC unroll 2
        for (int m = 0; m < Tokens; ++m) {
          Total<Grouped>* to = totals + s * kTotals + (t * Tokens + m) * kRowsPerPart;
          const V exact = widened(_mm256_add_epi16(even[t][m], _mm256_srai_epi16(odd[t][m], 2)));
          if constexpr (Grouped)
            add_scaled(to, exact, scale);
          else
            add_to(to, exact);
        }
      }
    }
    lines += blocks * kTileBytes;
    chunk_codes += blocks * Tokens * kBlock;
    if constexpr (Grouped) halves += kTileRows, start += Tokens;
  }
  for (int s = 0; s < Streams; ++s)
    for (int t = 0; t < 2; ++t)
      for (int m = 0; m < Tokens; ++m)
        store_part(totals + s * kTotals + (t * Tokens + m) * kRowsPerPart, p, m, w,
                   (tile + s * apart) * kTileRows + t * kRowsPerPart, y + m * y_stride);
}

template <Scales S, int Tokens>
void all_in_place(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  const long apart = (last_tile - first_tile) / 2;
  for (long i = 0; i < apart; ++i) in_place<S, Tokens, 2>(p, w, first_tile + i, apart, y, y_stride);
  if (first_tile + 2 * apart < last_tile) in_place<S, Tokens, 1>(p, w, last_tile - 1, 0, y, y_stride);
}

template <Scales S, bool Grouped = S != Scales::of_rows>
constexpr Ternary* kKernels[kPanelTokens] = {
    all_in_place<S, 1>,         all_in_place<S, 2>,         by_parts<Grouped, 2, 3>,    by_parts<Grouped, 2, 4>,
    by_parts<Grouped, 2, 3, 2>, by_parts<Grouped, 2, 3, 3>, by_parts<Grouped, 2, 4, 3>, by_parts<Grouped, 2, 4, 4>};

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

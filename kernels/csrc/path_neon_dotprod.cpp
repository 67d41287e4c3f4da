// NEON with dot products (ARMv8.2 and later): sdot multiplies 4 inputs of 4 rows, the activations taken from a lane.
#include "path_neon.h"

#if defined(__aarch64__)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__ARM_FEATURE_DOTPROD)
#define TARGET
#elif defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace frankenlm {
namespace {

using namespace neon;

// sum + plane * the 4 codes that plane g meets, out of the 16 of a block.
TARGET INLINE int32x4_t multiply_add(int32x4_t sum, int8x16_t plane, int8x16_t codes, int g) {
  switch (g) {  // a lane must be a literal
    case 0: return vdotq_laneq_s32(sum, plane, codes, 0);
    case 1: return vdotq_laneq_s32(sum, plane, codes, 1);
    case 2: return vdotq_laneq_s32(sum, plane, codes, 2);
    default: return vdotq_laneq_s32(sum, plane, codes, 3);
  }
}

// Keeps `value` in a register from here on. Without it the compiler may move sums to the stack inside the loop.
#define PIN(value) asm volatile("" : "+w"(value))

// One or two tokens: planes 0 to 2 of the codes (2 bits wide, 2 g bits up) are masked where they stand and summed apart,
// so one instruction takes out a plane; the sums, 4^g times too large, are shifted back exactly at the end. The highest
// plane would be signed where it stands. Shifted down, it shares the sums of the lowest.
constexpr int kPlaces = 3;

template <int Parts, int Tokens>
TARGET void planes(const Panel& p, const TernaryWeight& w, long tile, long part, float* y, long y_stride) {
  int32x4_t sum[Parts][Tokens][kPlaces] = {};
  const uint8x16_t mask[kPlaces] = {vdupq_n_u8(0x03), vdupq_n_u8(0x0c), vdupq_n_u8(0x30)};
  const uint8_t* line = w.tiles + tile * w.blocks * kTileBytes + part * static_cast<long>(sizeof(mask[0]));
  const int8_t* codes = p.codes;
  for (long b = 0; b < w.blocks; ++b, line += kTileBytes, codes += Tokens * kBlock) {
    int8x16_t x[Tokens];
#pragma GCC unroll 2
    for (int m = 0; m < Tokens; ++m) x[m] = vld1q_s8(codes + m * kBlock);
#pragma GCC unroll 4
    for (int t = 0; t < Parts; ++t) {
      const uint8x16_t bits = vld1q_u8(line + t * sizeof(bits));
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        const uint8x16_t plane = g < kPlaces ? vandq_u8(bits, mask[g % kPlaces]) : vshrq_n_u8(bits, 6);
#pragma GCC unroll 2
        for (int m = 0; m < Tokens; ++m) {
          int32x4_t& place = sum[t][m][g % kPlaces];
          place = multiply_add(place, vreinterpretq_s8_u8(plane), x[m], g);
        }
      }
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < Parts * Tokens * kPlaces; ++i) PIN((&sum[0][0][0])[i]);
#pragma GCC unroll 4
  for (int t = 0; t < Parts; ++t)
#pragma GCC unroll 2
    for (int m = 0; m < Tokens; ++m) {
      const int32x4_t high = vaddq_s32(vshrq_n_s32(sum[t][m][1], 2), vshrq_n_s32(sum[t][m][2], 4));
      store_part(vaddq_s32(sum[t][m][0], high), p.sum[m], p.step[m], w, tile * kTileRows + (part + t) * kRowsPerPart,
                 y + m * y_stride);
    }
}

// Three tokens and more: codes are shifted down once and serve every token.
template <int Parts, int Tokens>
TARGET void shifted(const Panel& p, const TernaryWeight& w, long tile, long part, float* y, long y_stride) {
  int32x4_t sum[Parts][Tokens] = {};
  const uint8_t* line = w.tiles + tile * w.blocks * kTileBytes + part * static_cast<long>(sizeof(uint8x16_t));
  const int8_t* codes = p.codes;
  for (long b = 0; b < w.blocks; ++b, line += kTileBytes, codes += Tokens * kBlock) {
    uint8x16_t bits[Parts];
    int8x16_t x[Tokens];
#pragma GCC unroll 4
    for (int t = 0; t < Parts; ++t) bits[t] = vld1q_u8(line + t * sizeof(bits[0]));
#pragma GCC unroll 8
    for (int m = 0; m < Tokens; ++m) x[m] = vld1q_s8(codes + m * kBlock);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g)
#pragma GCC unroll 4
      for (int t = 0; t < Parts; ++t) {
        const int8x16_t plane = next_plane(bits[t], g);
#pragma GCC unroll 8
        for (int m = 0; m < Tokens; ++m) sum[t][m] = multiply_add(sum[t][m], plane, x[m], g);
      }
  }
#pragma GCC unroll 24
  for (int i = 0; i < Parts * Tokens; ++i) PIN((&sum[0][0])[i]);
#pragma GCC unroll 4
  for (int t = 0; t < Parts; ++t)
#pragma GCC unroll 8
    for (int m = 0; m < Tokens; ++m)
      store_part(sum[t][m], p.sum[m], p.step[m], w, tile * kTileRows + (part + t) * kRowsPerPart, y + m * y_stride);
}

template <int Parts, int Tokens>
TARGET void all(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  for (long tile = first_tile; tile < last_tile; ++tile)
    for (long part = 0; part < kParts; part += Parts) {
      if constexpr (Tokens <= 2)
        planes<Parts, Tokens>(p, w, tile, part, y, y_stride);
      else
        shifted<Parts, Tokens>(p, w, tile, part, y, y_stride);
    }
}

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  constexpr decltype(&all<4, 1>) kernels[kPanelTokens] = {all<4, 1>, all<4, 2>, all<4, 3>, all<4, 4>,
                                                          all<4, 5>, all<2, 6>, all<2, 7>, all<2, 8>};
  kernels[p.tokens - 1](p, w, first_tile, last_tile, y, y_stride);
}

template <int Rows>
TARGET void int8_rows(const int8_t* codes, float step, const Int8Weight& w, long row, float* y) {
  int32x4_t sum[Rows] = {};
  const int8_t* first = w.codes + row * w.inputs;
  long k = 0;
  for (; k + 16 <= w.inputs; k += 16) {
    const int8x16_t x = vld1q_s8(codes + k);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sum[r] = vdotq_s32(sum[r], x, vld1q_s8(first + r * w.inputs + k));
  }
  for (int r = 0; r < Rows; ++r) {
    int32_t exact = vaddvq_s32(sum[r]);
    if (k < w.inputs) exact += dot(codes + k, first + r * w.inputs + k, w.inputs - k);
    y[row + r] = scaled(exact, step, w.scale[row + r], w.bias ? w.bias + row + r : nullptr);
  }
}

void int8(const int8_t* codes, float step, const Int8Weight& w, long first, long last, float* y) {
  long row = first;
  for (; row + 4 <= last; row += 4) int8_rows<4>(codes, step, w, row, y);
  for (; row < last; ++row) int8_rows<1>(codes, step, w, row, y);
}

bool available() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;  // the compiler was told so
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#elif defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP, which old headers lack
#else
  return false;
#endif
}

}  // namespace

const Path kNeonDotprod = {"neon_dotprod", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

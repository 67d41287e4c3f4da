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

// One or two tokens: planes 0 to 2 of the codes (2 bits wide, 2 g bits up) are masked where they stand and summed
// apart, so that one instruction takes out a plane; the sums, 4^g times too large, are shifted back exactly at the end.
// The highest plane would be signed where it stands. Shifted down, it shares the sums of the lowest.
template <int Parts, int Tokens>
struct InPlace {
  static constexpr int kParts = Parts, kTokens = Tokens, kPlaces = 3;
  static constexpr long kMostBlocks = kMaxTernaryInputs;
  int32x4_t sum[Parts][Tokens][kPlaces];

  INLINE void start(const Panel& p, long at) {
#pragma GCC unroll 8
    for (int i = 0; i < Parts * Tokens; ++i)
      sum[i / Tokens][i % Tokens][0] = vdupq_n_s32(p.group_offset[at + i % Tokens]);
  }

  TARGET INLINE void add(const uint8_t* line, const int8_t* codes) {
    const uint8x16_t mask[kPlaces] = {vdupq_n_u8(0x03), vdupq_n_u8(0x0c), vdupq_n_u8(0x30)};
    int8x16_t x[Tokens];
#pragma GCC unroll 2
    for (int m = 0; m < Tokens; ++m) x[m] = vld1q_s8(codes + m * kBlock);
#pragma GCC unroll 4
    for (int t = 0; t < Parts; ++t) {
      const uint8x16_t bits = vld1q_u8(line + t * kPartBytes);
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

  INLINE int32x4_t exact(int t, int m) const {
    return vsraq_n_s32(vsraq_n_s32(sum[t][m][0], sum[t][m][1], 2), sum[t][m][2], 4);
  }
};

// Three tokens and more: codes are shifted down once and serve every token.
template <int Parts, int Tokens>
struct Shifted {
  static constexpr int kParts = Parts, kTokens = Tokens;
  static constexpr long kMostBlocks = kMaxTernaryInputs;
  int32x4_t sum[Parts][Tokens];

  INLINE void start(const Panel& p, long at) {
#pragma GCC unroll 24
    for (int i = 0; i < Parts * Tokens; ++i)
      sum[i / Tokens][i % Tokens] = vdupq_n_s32(p.group_offset[at + i % Tokens]);
  }

  TARGET INLINE void add(const uint8_t* line, const int8_t* codes) {
    uint8x16_t bits[Parts];
    int8x16_t x[Tokens];
#pragma GCC unroll 4
    for (int t = 0; t < Parts; ++t) bits[t] = vld1q_u8(line + t * kPartBytes);
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

  INLINE int32x4_t exact(int t, int m) const { return sum[t][m]; }
};

TARGET INLINE int32x4_t add_products(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }

#include "path_neon.inc"

// Half tiles where a whole one's sums would fill the registers to the last.
template <bool Grouped>
constexpr Ternary* kKernels[kPanelTokens] = {
    all<Grouped, InPlace<4, 1>>, all<Grouped, InPlace<2, 2>>, all<Grouped, Shifted<4, 3>>, all<Grouped, Shifted<4, 4>>,
    all<Grouped, Shifted<2, 5>>, all<Grouped, Shifted<2, 6>>, all<Grouped, Shifted<2, 7>>, all<Grouped, Shifted<2, 8>>};

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  (w.group_blocks ? kKernels<true> : kKernels<false>)[p.tokens - 1](p, w, first_tile, last_tile, y, y_stride);
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

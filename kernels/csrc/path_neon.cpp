// NEON as every 64-bit ARM processor has it: smlal multiplies into 16 bits, which are widened before they can overflow.
#include "path_neon.h"

#if defined(__aarch64__)

namespace frankenlm {
namespace neon {

void widen(const void* x, Dtype dtype, long count, float* out) {
  const auto* halves = static_cast<const uint16_t*>(x);
  long i = 0;
  for (; i + 4 <= count; i += 4) {
    const uint16x4_t raw = vld1_u16(halves + i);
    vst1q_f32(out + i, dtype == Dtype::float16 ? widen_float16(raw) : widen_bfloat16(raw));
  }
  kScalar.widen(halves + i, dtype, count - i, out + i);
}

void narrow(const float* x, Dtype dtype, long count, void* out) {
  auto* halves = static_cast<uint16_t*>(out);
  long i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t wide = vld1q_f32(x + i);
    uint16x4_t raw;
    if (dtype == Dtype::float16) {
      raw = vreinterpret_u16_f16(vcvt_f16_f32(wide));
    } else {
      const uint32x4_t bits = vreinterpretq_u32_f32(wide), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
      const uint16x4_t rounded = vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
      raw = vbsl_u16(vmovn_u32(vceqq_f32(wide, wide)), rounded, vdup_n_u16(kBfloat16Nan));
    }
    vst1_u16(halves + i, raw);
  }
  kScalar.narrow(x + i, dtype, count - i, halves + i);
}

void quantize(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step, int32_t* sum) {
  const long whole = inputs / kBlock, blocks = blocks_of(inputs);
  float rest[kBlock] = {};
  std::memcpy(rest, x + whole * kBlock, (inputs - whole * kBlock) * sizeof(float));
  const auto block = [&](long b) { return b < whole ? x + b * kBlock : rest; };
  int32x4_t largest[4] = {};
  float64x2_t squares[4] = {};
  for (long b = 0; b < blocks; ++b)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float32x4_t v = vld1q_f32(block(b) + 4 * i);
      largest[i] = vmaxq_s32(largest[i], vandq_s32(vreinterpretq_s32_f32(v), vdupq_n_s32(0x7fffffff)));
      if (norm_eps > 0) {
        const float64x2_t low = vcvt_f64_f32(vget_low_f32(v)), high = vcvt_high_f64_f32(v);
        squares[i] = vaddq_f64(squares[i], vaddq_f64(vmulq_f64(low, low), vmulq_f64(high, high)));
      }
    }
  const int32x4_t maxima = vmaxq_s32(vmaxq_s32(largest[0], largest[1]), vmaxq_s32(largest[2], largest[3]));
  const float64x2_t two = vaddq_f64(vaddq_f64(squares[0], squares[1]), vaddq_f64(squares[2], squares[3]));
  const Rounding rounding = rounding_of(vmaxvq_s32(maxima), vaddvq_f64(two), inputs, norm_eps);
  *step = rounding.step;
  if (!rounding.finite) return clear_codes(codes, stride, blocks, sum);
  const float32x4_t r = vdupq_n_f32(rounding.inverse_rms), multiplier = vdupq_n_f32(rounding.multiplier);
  int32x4_t total = {};
  for (long b = 0; b < blocks; ++b) {
    int16x4_t rounded[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float32x4_t v = vmulq_f32(vmulq_f32(vld1q_f32(block(b) + 4 * i), r), multiplier);
      rounded[i] = vqmovn_s32(vcvtnq_s32_f32(v));  // to nearest, ties to even
    }
    const int16x8_t first = vcombine_s16(rounded[0], rounded[1]), second = vcombine_s16(rounded[2], rounded[3]);
    total = vpadalq_s16(total, vaddq_s16(first, second));
    vst1q_s8(codes + b * stride, vcombine_s8(vqmovn_s16(first), vqmovn_s16(second)));
  }
  *sum = vaddvq_s32(total);
}

int32_t dot(const int8_t* a, const int8_t* b, long count) {
  int32_t sum = 0;
  for (long k = 0; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace neon

namespace {

using namespace neon;

#define TARGET

// The 4 codes that plane g meets, out of the 16 of a block, for 4 rows.
INLINE int8x16_t broadcast(int8x16_t codes, int g) {
  const int32x4_t fours = vreinterpretq_s32_s8(codes);
  switch (g) {  // a lane must be a literal
    case 0: return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 0));
    case 1: return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 1));
    case 2: return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 2));
    default: return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 3));
  }
}

// 16-bit sums, two registers of them: 8 products of bytes fill one.
template <int Parts, int Tokens>
struct Sums {
  static constexpr int kParts = Parts, kTokens = Tokens;
  // 128 products of at most 2 * 128: 32768, which as -32768 is the lowest int16
  static constexpr long kMostBlocks = 32;
  int16x8_t sum[Parts][Tokens][2];

  // A row has 4 of the 16-bit sums: two begin with a half, two with 0.
  INLINE void start(const Panel& p, long at) {
#pragma GCC unroll 4
    for (int m = 0; m < Tokens; ++m) {
      const int64_t halves = static_cast<uint32_t>(p.group_halves[at + m]);
#pragma GCC unroll 8
      for (int i = 0; i < 2 * Parts; ++i) sum[i / 2][m][i % 2] = vreinterpretq_s16_s64(vdupq_n_s64(halves));
    }
  }

  INLINE void add(const uint8_t* line, const int8_t* codes) {
    uint8x16_t bits[Parts];
    int8x16_t sixteen[Tokens];
#pragma GCC unroll 4
    for (int t = 0; t < Parts; ++t) bits[t] = vld1q_u8(line + t * kPartBytes);
#pragma GCC unroll 4
    for (int m = 0; m < Tokens; ++m) {
      sixteen[m] = vld1q_s8(codes + m * kBlock);
      asm("" : "+w"(sixteen[m]));  // else each lane is loaded by itself, by way of a general register
    }
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      int8x16_t plane[Parts];
#pragma GCC unroll 4
      for (int t = 0; t < Parts; ++t) plane[t] = next_plane(bits[t], g);
#pragma GCC unroll 4
      for (int m = 0; m < Tokens; ++m) {
        const int8x16_t x = broadcast(sixteen[m], g);
#pragma GCC unroll 4
        for (int t = 0; t < Parts; ++t) {
          sum[t][m][0] = vmlal_s8(sum[t][m][0], vget_low_s8(plane[t]), vget_low_s8(x));
          sum[t][m][1] = vmlal_high_s8(sum[t][m][1], plane[t], x);
        }
      }
    }
  }

  INLINE int32x4_t exact(int t, int m) const {
    return vpaddq_s32(vpaddlq_s16(sum[t][m][0]), vpaddlq_s16(sum[t][m][1]));
  }
};

// Widened at once: two products of -128 * -128 do not fit into 16 bits.
INLINE int32x4_t add_products(int32x4_t sum, int8x16_t a, int8x16_t b) {
  sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  return vpadalq_s16(sum, vmull_high_s8(a, b));
}

#include "path_neon.inc"

// At most 4 tokens at once: with two parts each they fill 16 of the 32 registers.
using One = Sums<4, 1>;
using Two = Sums<2, 2>;
using Three = Sums<2, 3>;
using Four = Sums<2, 4>;
template <bool Grouped>
constexpr Ternary* kKernels[kPanelTokens] = {
    all<Grouped, One>,        all<Grouped, Two>,          all<Grouped, Three>,       all<Grouped, Four>,
    all<Grouped, Three, Two>, all<Grouped, Three, Three>, all<Grouped, Four, Three>, all<Grouped, Four, Four>};

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  (w.group_blocks ? kKernels<true> : kKernels<false>)[p.tokens - 1](p, w, first_tile, last_tile, y, y_stride);
}

bool available() { return true; }

}  // namespace

const Path kNeon = {"neon", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

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
    const float32x4_t wide = dtype == Dtype::float16 ? vcvt_f32_f16(vreinterpret_f16_u16(raw))
                                                     : vreinterpretq_f32_u32(vshll_n_u16(raw, 16));
    vst1q_f32(out + i, wide);
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

constexpr int kGroupTokens = 4;     // tokens multiplied at once: with two parts each they fill 16 of the 32 registers
constexpr long kBlocksPerSum = 32;  // 128 products of at most 2 * 128: 32768, which as -32768 is the lowest int16

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

// Adds `blocks` blocks to total[part][token], 4 rows each. A function of its own, so that nothing but what the loop
// needs competes for the registers. A sum is 2 registers: 8 products of bytes fill one.
template <int Parts, int Tokens>
__attribute__((noinline)) void add_blocks(const uint8_t* line, const int8_t* codes, long step, long blocks,
                                          int32_t* total) {
  int16x8_t sum[Parts][Tokens][2] = {};
  for (long b = 0; b < blocks; ++b, line += kTileBytes, codes += step) {
    uint8x16_t bits[Parts];
#pragma GCC unroll 4
    for (int t = 0; t < Parts; ++t) bits[t] = vld1q_u8(line + t * sizeof(bits[0]));
    int8x16_t sixteen[Tokens];
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
#pragma GCC unroll 4
  for (int t = 0; t < Parts; ++t)
#pragma GCC unroll 4
    for (int m = 0; m < Tokens; ++m) {
      int32_t* to = total + (t * Tokens + m) * kRowsPerPart;
      const int32x4_t rows = vpaddq_s32(vpaddlq_s16(sum[t][m][0]), vpaddlq_s16(sum[t][m][1]));
      vst1q_s32(to, vaddq_s32(vld1q_s32(to), rows));
    }
}

template <int Parts, int Tokens>
void parts(const Panel& p, const TernaryWeight& w, long tile, long first_part, long token, float* y, long y_stride) {
  const uint8_t* line = w.tiles + tile * w.blocks * kTileBytes + first_part * static_cast<long>(sizeof(uint8x16_t));
  const int8_t* codes = p.codes + token * kBlock;
  const long step = p.tokens * kBlock;
  int32_t total[Parts * Tokens * kRowsPerPart] = {};
  for (long b = 0; b < w.blocks; b += kBlocksPerSum) {
    const long blocks = w.blocks - b < kBlocksPerSum ? w.blocks - b : kBlocksPerSum;
    add_blocks<Parts, Tokens>(line + b * kTileBytes, codes + b * step, step, blocks, total);
  }
  for (int t = 0; t < Parts; ++t)
    for (int m = 0; m < Tokens; ++m)
      store_part(vld1q_s32(total + (t * Tokens + m) * kRowsPerPart), p.sum[token + m], p.step[token + m], w,
                 tile * kTileRows + (first_part + t) * kRowsPerPart, y + (token + m) * y_stride);
}

template <int Parts, int Tokens>
void whole_tile(const Panel& p, const TernaryWeight& w, long tile, long token, float* y, long y_stride) {
  for (long part = 0; part < kParts; part += Parts) parts<Parts, Tokens>(p, w, tile, part, token, y, y_stride);
}

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  const long groups = (p.tokens + kGroupTokens - 1) / kGroupTokens;
  for (long tile = first_tile; tile < last_tile; ++tile)
    for (long group = 0; group < groups; ++group) {
      const long token = group * p.tokens / groups, size = (group + 1) * p.tokens / groups - token;
      switch (size) {
        case 1: whole_tile<4, 1>(p, w, tile, token, y, y_stride); break;
        case 2: whole_tile<2, 2>(p, w, tile, token, y, y_stride); break;
        case 3: whole_tile<2, 3>(p, w, tile, token, y, y_stride); break;
        default: whole_tile<2, kGroupTokens>(p, w, tile, token, y, y_stride);
      }
    }
}

// Products are widened at once: two of -128 * -128 do not fit into 16 bits.
INLINE int32x4_t add_products(int32x4_t sum, int8x16_t a, int8x16_t b) {
  sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  return vpadalq_s16(sum, vmull_high_s8(a, b));
}

template <int Rows>
void int8_rows(const int8_t* codes, float step, const Int8Weight& w, long row, float* y) {
  int32x4_t sum[Rows] = {};
  const int8_t* first = w.codes + row * w.inputs;
  long k = 0;
  for (; k + 16 <= w.inputs; k += 16) {
    const int8x16_t x = vld1q_s8(codes + k);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sum[r] = add_products(sum[r], x, vld1q_s8(first + r * w.inputs + k));
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

bool available() { return true; }

}  // namespace

const Path kNeon = {"neon", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm
#endif

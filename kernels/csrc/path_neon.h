// What the two paths of ARM processors share: everything but the products.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>

#include <type_traits>

#include "rounding.h"
#include "ternary.h"

#define INLINE __attribute__((always_inline)) inline

namespace frankenlm {
namespace neon {

constexpr long kRowsPerPart = 4;  // a register holds a quarter of a tile
constexpr long kPartBytes = kTileBytes * kRowsPerPart / kTileRows;

// In path_neon.cpp; needed once, since their speed does not depend on the products.
void widen(const void* x, Dtype dtype, long count, float* out);
void narrow(const float* x, Dtype dtype, long count, void* out);
void quantize(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step, int32_t* sum);
int32_t dot(const int8_t* a, const int8_t* b, long count);  // of what is left of a row, fewer than 16

INLINE float32x4_t widen_float16(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }
INLINE float32x4_t widen_bfloat16(uint16x4_t halves) { return vreinterpretq_f32_u32(vshll_n_u16(halves, 16)); }

// The scales of 4 rows in one group.
INLINE float32x4_t load_scales(const TernaryWeight& w, const uint16_t* halves) {
  return w.group_dtype == Dtype::float16 ? widen_float16(vld1_u16(halves)) : widen_bfloat16(vld1_u16(halves));
}

// As store_part, for the last rows of a weight. Rare, and not to be repeated in every kernel.
__attribute__((noinline)) inline void store_last(int32x4_t sum, const Panel& p, long token, const TernaryWeight& w,
                                                 long row, float* y) {
  int32_t rows[kRowsPerPart];
  vst1q_s32(rows, sum);
  store_rest(rows, w.rows - row, p.sum[token], p.step[token], w, row, y);
}
__attribute__((noinline)) inline void store_last(float32x4_t total, const Panel& p, long token, const TernaryWeight& w,
                                                 long row, float* y) {
  float rows[kRowsPerPart];
  vst1q_f32(rows, total);
  store_rest(rows, w.rows - row, p.step[token], w, row, y);
}

// y = float(sum) * (step * scale) + bias for 4 rows of one token, fewer at the weight's end.
INLINE void store_part(int32x4_t sum, const Panel& p, long token, const TernaryWeight& w, long row, float* y) {
  if (w.rows - row < kRowsPerPart) return store_last(sum, p, token, w, row, y);
  const int32x4_t exact = vsubq_s32(sum, vdupq_n_s32(p.sum[token]));
  const float32x4_t factor = vmulq_f32(vdupq_n_f32(p.step[token]), vld1q_f32(w.scale + row));
  float32x4_t out = vmulq_f32(vcvtq_f32_s32(exact), factor);
  if (w.bias) out = vaddq_f32(out, vld1q_f32(w.bias + row));
  vst1q_f32(y + row, out);
}

// y = step * total + bias, with scales per group.
INLINE void store_part(float32x4_t total, const Panel& p, long token, const TernaryWeight& w, long row, float* y) {
  if (w.rows - row < kRowsPerPart) return store_last(total, p, token, w, row, y);
  float32x4_t out = vmulq_f32(vdupq_n_f32(p.step[token]), total);
  if (w.bias) out = vaddq_f32(out, vld1q_f32(w.bias + row));
  vst1q_f32(y + row, out);
}

// Plane g of the codes in `bits`, which are then shifted on to the next.
INLINE int8x16_t next_plane(uint8x16_t& bits, int g) {
  const uint8x16_t plane = g < 3 ? vandq_u8(bits, vdupq_n_u8(3)) : bits;
  bits = vshrq_n_u8(bits, 2);
  return vreinterpretq_s8_u8(plane);
}

}  // namespace neon
}  // namespace frankenlm
#endif

// What the two paths of ARM processors share: everything but the products.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>

#include "rounding.h"
#include "ternary.h"

#define INLINE __attribute__((always_inline)) inline

namespace frankenlm {
namespace neon {

constexpr long kRowsPerPart = 4;  // a register holds a quarter of a tile
constexpr long kParts = kTileRows / kRowsPerPart;

// In path_neon.cpp; needed once, since their speed does not depend on the products.
void widen(const void* x, Dtype dtype, long count, float* out);
void narrow(const float* x, Dtype dtype, long count, void* out);
void quantize(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step, int32_t* sum);
int32_t dot(const int8_t* a, const int8_t* b, long count);  // of what is left of a row, fewer than 16

// y = float(sum) * (step * scale) + bias for 4 rows of one token, fewer at the weight's end.
INLINE void store_part(int32x4_t sum, int32_t correction, float step, const TernaryWeight& w, long row, float* y) {
  const long rows = w.rows - row;
  if (rows >= kRowsPerPart) {
    const int32x4_t exact = vsubq_s32(sum, vdupq_n_s32(correction));
    const float32x4_t factor = vmulq_f32(vdupq_n_f32(step), vld1q_f32(w.scale + row));
    float32x4_t out = vmulq_f32(vcvtq_f32_s32(exact), factor);
    if (w.bias) out = vaddq_f32(out, vld1q_f32(w.bias + row));
    vst1q_f32(y + row, out);
  } else {
    int32_t last[kRowsPerPart];
    vst1q_s32(last, sum);
    store_rest(last, rows, correction, step, w, row, y);
  }
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

// The float arithmetic that every path does alike, one token or one output at a time.
//
// Each operation is a single correctly rounded float32 operation; the library is compiled with -ffp-contract=off, so
// none of them melts into another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ternary.h"

namespace frankenlm {

constexpr float kCodeLimit = 127.0f;
constexpr float kScaleFloor = 1e-5f;
constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kBfloat16Nan = 0x7fc0;

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct Rounding {
  float inverse_rms;  // 1 without normalisation
  float multiplier;
  float step;
  bool finite;
};

// `largest` is the largest magnitude as the bits of a float, compared as an integer: NaN then counts as larger than
// infinity, whichever order the values come in.
// The squares are summed in double: the mean, rounded to float, then is the same in any order of summation.
inline Rounding rounding_of(int32_t largest, double sum_of_squares, long inputs, float norm_eps) {
  Rounding out{1.0f, 0.0f, NAN, largest < kInfinityBits};
  if (!out.finite) return out;
  float magnitude = bits_as<float>(largest);
  if (norm_eps > 0) {
    const float mean = static_cast<float>(sum_of_squares / static_cast<double>(inputs));
    out.inverse_rms = 1.0f / std::sqrt(mean + norm_eps);
    magnitude *= out.inverse_rms;
  }
  // The reciprocal first, as torch divides a number by a tensor: BitLinear's codes then come out the same.
  out.multiplier = (1.0f / (magnitude > kScaleFloor ? magnitude : kScaleFloor)) * kCodeLimit;
  out.step = 1.0f / out.multiplier;
  return out;
}

// A token that is not finite has no codes; its step, NaN, makes its outputs NaN.
inline void clear_codes(int8_t* codes, long stride, long blocks, int32_t* sum) {
  for (long b = 0; b < blocks; ++b) std::memset(codes + b * stride, 0, kBlock);
  *sum = 0;
}

inline float scaled(int32_t exact, float step, float scale, const float* bias) {
  const float out = static_cast<float>(exact) * (step * scale);
  return bias ? out + *bias : out;
}

// The last rows of a weight, fewer than a register holds; none when `rows` is below 1. With scales per row, then per
// group.
inline void store_rest(const int32_t* sum, long rows, int32_t correction, float step, const TernaryWeight& w, long row,
                       float* y) {
  for (long i = 0; i < rows; ++i)
    y[row + i] = scaled(sum[i] - correction, step, w.scale[row + i], w.bias ? w.bias + row + i : nullptr);
}

inline void store_rest(const float* total, long rows, float step, const TernaryWeight& w, long row, float* y) {
  for (long i = 0; i < rows; ++i) {
    const float out = step * total[i];
    y[row + i] = w.bias ? out + w.bias[row + i] : out;
  }
}

inline float from_bfloat16(uint16_t half) { return bits_as<float>(static_cast<uint32_t>(half) << 16); }

inline uint16_t to_bfloat16(float value) {
  if (value != value) return kBfloat16Nan;
  const uint32_t bits = bits_as<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return bits_as<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest >= 0x0400) return bits_as<float>(sign | ((rest << 13) + ((127 - 15) << 23)));
  const float tiny = static_cast<float>(rest) * 0x1p-24f;  // a subnormal half is a normal float
  return sign ? -tiny : tiny;
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (rest >> 13 & 0x3ff));  // quiet, payload kept
  if (rest >= 0x477ff000) return sign | 0x7c00;                                  // rounds to infinity
  if (rest < 0x38800000) {                                                       // a subnormal half
    // Adding 0.5 leaves exactly the 2^-24 units in the low bits, rounded to even.
    return static_cast<uint16_t>(sign | (bits_as<uint32_t>(bits_as<float>(rest) + 0.5f) - 0x3f000000));
  }
  const uint32_t rounded = rest + 0xfff + ((rest >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - ((127 - 15) << 23)) >> 13));
}

}  // namespace frankenlm

// Problems for the operators, drawn from a seed: sizes, formats, and memory that holds odd numbers and codes.
#pragma once

#include <cmath>
#include <cstring>

#include "guarded.h"
#include "rounding.h"
#include "ternary.h"

namespace frankenlm {

using Floats = Guarded<float>;
using Bytes = Guarded<int8_t>;
using Halves = Guarded<uint16_t>;

// Knuth's linear congruential numbers; only their upper bits are used
struct Draw {
  uint64_t state;
  uint64_t bits() { return (state = state * 6364136223846793005u + 1442695040888963407u) >> 24; }
  long below(long end) { return static_cast<long>(bits() % static_cast<uint64_t>(end)); }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits()) * 0x1p-40; }
  template <class T, size_t N>
  T of(const T (&choices)[N]) {
    return choices[below(N)];
  }
};

constexpr long kSizes[] = {1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 129, 255, 256, 257};
constexpr long kLongSizes[] = {300, 400, 511, 512, 513, 528, 1030, 2050};
constexpr long kTokens[] = {0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17};
constexpr float kOddNumbers[] = {0.0f, -0.0f, 1.0f, -3.5f, 1e-30f, 65000.0f, 3e38f, 1e-40f, -1.4e-45f};
constexpr float kNotFinite[] = {INFINITY, -INFINITY, NAN};
constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::bfloat16, Dtype::float16};

inline long padded(long inputs) { return (inputs + 63) / 64 * 64; }

struct Problem {
  long number, tokens, inputs, rows;
  Dtype dtype;
  float norm_eps;
  bool has_bias;
  long code_kind;         // of weights and of the activations' codes: drawn, or all at one end of the range
  long group_blocks = 0;  // 0: a scale for each row
  Dtype group_dtype = Dtype::bfloat16;
};

inline Problem draw_problem(long number, Draw& draw) {
  Problem p{number, draw.of(kTokens), draw.of(kSizes), draw.of(kSizes), draw.of(kDtypes), -1.0f, number % 2 == 0, 0};
  const float eps[] = {-1.0f, 1e-6f, 0.1f};
  p.norm_eps = draw.of(eps);
  if (number % 5 == 4) (draw.below(2) ? p.inputs : p.rows) = draw.of(kLongSizes);
  if (number % 97 == 96) p = {number, 70, 129, 100, p.dtype, p.norm_eps, p.has_bias, 0};  // threads share panels
  if (number % 3 == 2) p.code_kind = 1 + draw.below(4);
  const long group_blocks[] = {0, 2, 4, 8};
  p.group_blocks = draw.of(group_blocks);
  if (draw.below(2)) p.group_dtype = Dtype::float16;
  return p;
}

inline long groups(const Problem& p) {
  return p.group_blocks ? (blocks_of(p.inputs) + p.group_blocks - 1) / p.group_blocks : 0;
}

// One problem's memory: filled from the seed, read by every path.
struct Memory {
  Floats x;
  Halves halves;  // x in its own format, if it is 16 bits wide
  Guarded<uint8_t> tiles;
  Floats scale, bias;
  Halves group_scale;
  Bytes weight, codes, padded_codes;
  Floats step;
  Guarded<int32_t> sum;

  Memory(const Problem& p, Draw& draw)
      : x(p.tokens * p.inputs), halves(p.tokens * p.inputs), tiles(tiles_of(p.rows) * blocks_of(p.inputs) * kTileBytes),
        scale(p.rows), bias(p.rows), group_scale(tiles_of(p.rows) * groups(p) * kTileRows),
        weight(p.rows * p.inputs), codes(p.tokens * p.inputs),
        padded_codes(p.tokens * padded(p.inputs)), step(p.tokens), sum(p.tokens) {
    fill_activations(p, draw);
    fill_weights(p, draw);
    fill_codes(p, draw);
  }

  const void* data(const Problem& p) {
    return p.dtype == Dtype::float32 ? static_cast<const void*>(x.data()) : halves.data();
  }

  void fill_activations(const Problem& p, Draw& draw) {
    const double size = std::pow(10.0, draw.uniform(-4, 3));
    for (long i = 0; i < p.tokens * p.inputs; ++i)
      x[i] = static_cast<float>(size * (draw.uniform(-1, 1) + draw.uniform(-1, 1) + draw.uniform(-1, 1)));
    if (p.tokens && p.number % 7 == 3) {
      const long token = draw.below(p.tokens);
      const float value = draw.of(kOddNumbers);
      for (long k = 0; k < p.inputs; ++k) x[token * p.inputs + k] = value;
    }
    if (p.tokens && p.number % 11 == 5) x[draw.below(p.tokens * p.inputs)] = draw.of(kNotFinite);
    if (p.tokens && p.number % 13 == 6) x[draw.below(p.tokens * p.inputs)] = draw.of(kOddNumbers);
    if (p.dtype == Dtype::float32) return;
    kScalar.narrow(x, p.dtype, p.tokens * p.inputs, halves.data());
    kScalar.widen(halves.data(), p.dtype, p.tokens * p.inputs, x);
  }

  void fill_weights(const Problem& p, Draw& draw) {
    std::memset(tiles.data(), 0x55, tiles.bytes());  // zero weights: code 1
    for (long n = 0; n < p.rows; ++n)
      for (long k = 0; k < p.inputs; ++k) {
        const int code = p.code_kind == 0 ? static_cast<int>(draw.below(3)) : 2 * (p.code_kind & 1);
        uint8_t& byte = tiles[(n / 16 * blocks_of(p.inputs) + k / 16) * 64 + 4 * (n % 16) + k % 4];
        const int shift = 2 * (k % 16 / 4);
        byte = static_cast<uint8_t>((byte & ~(3 << shift)) | code << shift);
        const long drawn = p.code_kind == 0 ? draw.below(256) : (p.code_kind & 1 ? -128 : 127);
        weight[n * p.inputs + k] = static_cast<int8_t>(drawn);
      }
    for (long n = 0; n < p.rows; ++n) {
      scale[n] = static_cast<float>(draw.uniform(0.1, 1.1));
      bias[n] = static_cast<float>(draw.uniform(-2, 2));
    }
    if (p.number % 17 == 7) scale[draw.below(p.rows)] = draw.of(kNotFinite);
    if (p.number % 19 == 8) scale[draw.below(p.rows)] = draw.of(kOddNumbers);
    for (long i = 0; i < group_scale.bytes() / 2; ++i) {
      const float value = p.number % 17 == 7 && !draw.below(50) ? draw.of(kNotFinite)
                          : p.number % 19 == 8 && !draw.below(50) ? draw.of(kOddNumbers)
                                                                  : static_cast<float>(draw.uniform(0.1, 1.1));
      group_scale[i] = p.group_dtype == Dtype::float16 ? to_float16(value) : to_bfloat16(value);
    }
    if (p.number % 23 == 9) bias[draw.below(p.rows)] = draw.of(kNotFinite);
  }

  void fill_codes(const Problem& p, Draw& draw) {
    std::memset(padded_codes.data(), 0, padded_codes.bytes());
    for (long m = 0; m < p.tokens; ++m) {
      sum[m] = 0;
      for (long k = 0; k < p.inputs; ++k) {
        const int8_t code = p.code_kind == 0 ? static_cast<int8_t>(draw.below(256)) : (p.code_kind & 2 ? -128 : 127);
        codes[m * p.inputs + k] = padded_codes[m * padded(p.inputs) + k] = code;
        sum[m] += code;
      }
      step[m] = static_cast<float>(draw.uniform(1e-4, 1));
    }
    if (p.tokens && p.number % 11 == 7) step[draw.below(p.tokens)] = NAN;
  }
};

inline TernaryWeight ternary_weight(const Problem& p, Memory& memory) {
  TernaryWeight w{memory.tiles, memory.scale, p.has_bias ? memory.bias.data() : nullptr, p.rows, blocks_of(p.inputs)};
  if (p.group_blocks) {
    w.scale = nullptr;
    w.group_scale = memory.group_scale;
    w.group_dtype = p.group_dtype;
    w.group_blocks = p.group_blocks;
  }
  return w;
}

inline Int8Weight int8_weight(const Problem& p, Memory& memory) {
  return {memory.weight, memory.scale, p.has_bias ? memory.bias.data() : nullptr, p.rows, p.inputs};
}

}  // namespace frankenlm

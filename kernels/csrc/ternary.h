// What the code paths share: the shape of a problem, and the table of functions that each instruction set fills in.
//
// Every path computes the same integers, and then the same float operations in the same order, so results are equal to
// the last bit whichever path runs. The packed layout (kernels/README.md): a tile holds 16 output rows by 16
// inputs in 64 bytes; byte 4 i + j carries, for row i, input 4 g + j in its bits 2 g and 2 g + 1, as weight + 1.
#pragma once

#include <cstdint>

namespace frankenlm {

constexpr long kTileRows = 16;    // output rows of a tile
constexpr long kBlock = 16;       // inputs of a tile, and of a block of a panel
constexpr long kTileBytes = 64;
constexpr long kPanelTokens = 8;  // tokens multiplied at once: 3 tiles x 8 tokens are 24 of the 32 AVX-512 registers
constexpr long kAhead = 2048;     // bytes asked for ahead in each stream of weights, where memory is the limit
// A plane of codes is summed up to 64 times too large (see planes in path_avx512_vnni.cpp): 65,536 a block at most, in int32.
constexpr long kMaxTernaryInputs = 500000;
constexpr long kMaxGroupBlocks = 8;  // 16-bit sums hold a group
// Activations are offset to 0..255 there: 255 * 128 an input at most, in int32.
constexpr long kMaxInt8Inputs = 65536;

enum class Dtype : int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };

inline long blocks_of(long inputs) { return (inputs + kBlock - 1) / kBlock; }
inline long tiles_of(long rows) { return (rows + kTileRows - 1) / kTileRows; }

// Quantised tokens, at most kPanelTokens, in the order the micro kernels read them: [blocks][tokens][16] codes.
struct Panel {
  const int8_t* codes;
  const float* step;   // [tokens]; value ~ code * step
  const int32_t* sum;  // [tokens]; of the codes, takes back the + 1 of the weights
  long tokens;
  long blocks;
  // With scales per group, [groups][tokens]: minus the sum of the group's codes, and the same as two int16 side by side
  // that add up to it, which 16-bit sums can start from.
  const int32_t* group_offset = nullptr;
  const int32_t* group_halves = nullptr;
};

// A scale for each row, or for each row and group of inputs. By rows, y = float(sum) * (step * scale); by groups,
// y = step * total, where total grows from 0 by float(sum of the group) * scale, group after group.
struct TernaryWeight {
  const uint8_t* tiles;  // [tiles][blocks][64]
  const float* scale;    // [rows]; null with scales per group
  const float* bias;     // [rows] or null
  long rows;
  long blocks;
  const uint16_t* group_scale = nullptr;   // [tiles][groups][16]; rows beyond the last are there too
  Dtype group_dtype = Dtype::bfloat16;     // of group_scale, a half-precision one
  long group_blocks = 0;                   // 2, 4 or 8 blocks make a group, the last one maybe fewer; 0: a scale per row

  long groups() const { return group_blocks ? (blocks + group_blocks - 1) / group_blocks : 0; }
  const uint16_t* scales_of(long tile, long group) const {
    return group_scale + (tile * groups() + group) * kTileRows;
  }
};

// Which kernel a weight needs.
enum class Scales { of_rows, bfloat16_of_groups, float16_of_groups };
inline Scales scales_of(const TernaryWeight& w) {
  if (!w.group_blocks) return Scales::of_rows;
  return w.group_dtype == Dtype::float16 ? Scales::float16_of_groups : Scales::bfloat16_of_groups;
}
constexpr Dtype dtype_of(Scales scales) {
  return scales == Scales::float16_of_groups ? Dtype::float16 : Dtype::bfloat16;
}

struct Int8Weight {
  const int8_t* codes;  // [rows][inputs]
  const float* scale;   // [rows]
  const float* bias;    // [rows] or null
  long rows;
  long inputs;
};

struct Path {
  const char* name;
  bool (*available)();
  // float32 values of one token; `out` may not overlap `x`.
  void (*widen)(const void* x, Dtype dtype, long count, float* out);
  void (*narrow)(const float* x, Dtype dtype, long count, void* out);
  // One token to int8: block b goes to codes + b * stride, the last one filled up with zeros.
  void (*quantize)(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step, int32_t* sum);
  // Rows first_tile * 16 up to last_tile * 16 (or weight.rows) of every token; y points at row 0 of token 0.
  void (*ternary)(const Panel&, const TernaryWeight&, long first_tile, long last_tile, float* y, long y_stride);
  // Rows [first, last) of one token, whose codes are plainly in a row, zeros up to a multiple of 64.
  void (*int8)(const int8_t* codes, float step, const Int8Weight&, long first, long last, float* y);
};

extern const Path kScalar;
#if defined(__x86_64__)
extern const Path kSse41, kAvx2, kAvxVnni, kAvx512Vnni;
#elif defined(__aarch64__)
extern const Path kNeon, kNeonDotprod;
#endif

// Fastest first; the list ends with a null pointer.
const Path* const* all_paths();

// The path that runs: the fastest available, or the one FRANKENLM_TERNARY_PATH names. Whatever takes a name throws
// std::runtime_error for one that does not exist and for a path that this processor lacks.
const Path& chosen_path();
const Path& path_by_name(const char* name);
void choose_path(const char* name);

// What a call multiplies. Strides are in elements; the last dimension is contiguous.
struct Activations {
  const void* data;
  Dtype dtype;
  long tokens;
  long inputs;
  float norm_eps;  // 0 and below: no normalisation
};

struct QuantizedActivations {
  const int8_t* codes;  // [tokens][inputs]
  const float* step;
  const int32_t* sum;
  long tokens;
  long inputs;
};

// Fills in what a weight with scales per group needs of a panel.
void fill_group_offsets(const int8_t* codes, long tokens, long blocks, long group_blocks, int32_t* offset,
                        int32_t* halves);

// The whole operator without torch's types: what binding.cpp registers and the benchmark times.
void quantize_activations(const Path&, const Activations&, int8_t* codes, float* step, int32_t* sum);
void ternary_linear(const Path&, const Activations&, const TernaryWeight&, void* y, Dtype y_dtype);
void ternary_linear(const Path&, const QuantizedActivations&, const TernaryWeight&, void* y, Dtype y_dtype);
void int8_linear(const Path&, const Activations&, const Int8Weight&, void* y, Dtype y_dtype);

}  // namespace frankenlm

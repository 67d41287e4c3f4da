// Plain C++: the path of every processor, and the one the others are compared with.
#include "rounding.h"
#include "ternary.h"

namespace frankenlm {
namespace {

void widen(const void* x, Dtype dtype, long count, float* out) {
  const auto* halves = static_cast<const uint16_t*>(x);
  if (dtype == Dtype::float16) {
    for (long i = 0; i < count; ++i) out[i] = from_float16(halves[i]);
  } else {
    for (long i = 0; i < count; ++i) out[i] = from_bfloat16(halves[i]);
  }
}

void narrow(const float* x, Dtype dtype, long count, void* out) {
  auto* halves = static_cast<uint16_t*>(out);
  if (dtype == Dtype::float16) {
    for (long i = 0; i < count; ++i) halves[i] = to_float16(x[i]);
  } else {
    for (long i = 0; i < count; ++i) halves[i] = to_bfloat16(x[i]);
  }
}

void quantize(const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step, int32_t* sum) {
  int32_t largest = 0;
  for (long k = 0; k < inputs; ++k) {
    const int32_t bits = bits_as<int32_t>(x[k]) & 0x7fffffff;
    if (bits > largest) largest = bits;
  }
  double squares = 0.0;
  if (norm_eps > 0)
    for (long k = 0; k < inputs; ++k) squares += static_cast<double>(x[k]) * static_cast<double>(x[k]);
  const Rounding rounding = rounding_of(largest, squares, inputs, norm_eps);
  *step = rounding.step;
  const long blocks = blocks_of(inputs);
  if (!rounding.finite) return clear_codes(codes, stride, blocks, sum);
  int32_t total = 0;
  for (long b = 0; b < blocks; ++b)
    for (long i = 0; i < kBlock; ++i) {
      const long k = b * kBlock + i;
      const float value = k < inputs ? x[k] * rounding.inverse_rms * rounding.multiplier : 0.0f;
      const auto code = static_cast<int8_t>(std::nearbyint(value));
      codes[b * stride + i] = code;
      total += code;
    }
  *sum = total;
}

// 16-bit sums, one for each byte of a tile, in loops that a compiler can turn into vectors by itself. A block adds at
// most 4 * 2 * 128 to one of them, so they are emptied every 31 blocks.
constexpr long kBlocksPerSum = 31;

void add_blocks(const uint8_t* line, const int8_t* codes, long step, long blocks, int32_t* total) {
  int16_t sum[kTileBytes] = {};
  for (long b = 0; b < blocks; ++b, line += kTileBytes, codes += step) {
    int16_t x[4][8];  // the 4 inputs of each plane, twice: 8 bytes of a tile are 2 rows
    for (int g = 0; g < 4; ++g)
      for (int j = 0; j < 8; ++j) x[g][j] = codes[4 * g + j % 4];
    for (int i = 0; i < kTileBytes; i += 8)
      for (int j = 0; j < 8; ++j) {
        const uint8_t byte = line[i + j];
        const int product =
            (byte & 3) * x[0][j] + (byte >> 2 & 3) * x[1][j] + (byte >> 4 & 3) * x[2][j] + (byte >> 6) * x[3][j];
        sum[i + j] = static_cast<int16_t>(sum[i + j] + product);
      }
  }
  for (int i = 0; i < kTileBytes; ++i) total[i / 4] += sum[i];
}

// Blocks [first, last) of one token times a tile.
void add_range(const Panel& p, const uint8_t* line, long m, long first, long last, int32_t* total) {
  const long step = p.tokens * kBlock;
  for (long b = first; b < last; b += kBlocksPerSum)
    add_blocks(line + b * kTileBytes, p.codes + b * step + m * kBlock, step,
               last - b < kBlocksPerSum ? last - b : kBlocksPerSum, total);
}

void add_groups(const Panel& p, const TernaryWeight& w, long tile, long m, float* total) {
  const uint8_t* line = w.tiles + tile * w.blocks * kTileBytes;
  for (long group = 0; group < w.groups(); ++group) {
    const long first = group * w.group_blocks, end = first + w.group_blocks;
    int32_t sum[kTileRows] = {};
    float scale[kTileRows];
    add_range(p, line, m, first, end < w.blocks ? end : w.blocks, sum);
    widen(w.scales_of(tile, group), w.group_dtype, kTileRows, scale);
    for (int i = 0; i < kTileRows; ++i) {
      const float product = static_cast<float>(sum[i] + p.group_offset[group * p.tokens + m]) * scale[i];
      total[i] += product;
    }
  }
}

void ternary(const Panel& p, const TernaryWeight& w, long first_tile, long last_tile, float* y, long y_stride) {
  for (long tile = first_tile; tile < last_tile; ++tile) {
    const long row = tile * kTileRows, rows = w.rows - row < kTileRows ? w.rows - row : kTileRows;
    for (long m = 0; m < p.tokens; ++m) {
      if (w.group_blocks) {
        float total[kTileRows] = {};
        add_groups(p, w, tile, m, total);
        store_rest(total, rows, p.step[m], w, row, y + m * y_stride);
      } else {
        int32_t sum[kTileRows] = {};
        add_range(p, w.tiles + tile * w.blocks * kTileBytes, m, 0, w.blocks, sum);
        store_rest(sum, rows, p.sum[m], p.step[m], w, row, y + m * y_stride);
      }
    }
  }
}

void int8(const int8_t* codes, float step, const Int8Weight& w, long first, long last, float* y) {
  for (long row = first; row < last; ++row) {
    const int8_t* line = w.codes + row * w.inputs;
    int32_t sum = 0;
    for (long k = 0; k < w.inputs; ++k) sum += codes[k] * line[k];
    y[row] = scaled(sum, step, w.scale[row], w.bias ? w.bias + row : nullptr);
  }
}

bool available() { return true; }

}  // namespace

const Path kScalar = {"scalar", available, widen, narrow, quantize, ternary, int8};

}  // namespace frankenlm

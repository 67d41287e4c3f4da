// The operators without torch's types: panels, threads, and the order of the loops.
//
// A panel of at most 8 tokens is quantised into the order the micro kernels read and then meets every tile of the
// weight, which streams past it. Few tokens: the threads share the tiles. Many: they share the panels.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "threads.h"
#include "ternary.h"

namespace frankenlm {
namespace {

constexpr long kSerialProducts = 600000;  // below, starting threads costs more than it gives
constexpr long kProductsPerTask = 300000;
constexpr long kPanelsPerThread = 4;      // from here on threads share panels, and a thread's last one weighs little
constexpr long kValuesAtOnce = 8192;      // half-precision results held as floats

// Memory of one thread, 64-byte aligned, that is kept from call to call and only grows.
class Scratch {
 public:
  template <class T>
  T* get(long count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
    if (bytes > size_) {
      memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

size_t width_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

const float* token_of(const Path& path, const Activations& x, long m) {
  const char* row = static_cast<const char*>(x.data) + m * x.inputs * width_of(x.dtype);
  if (x.dtype == Dtype::float32) return reinterpret_cast<const float*>(row);
  thread_local Scratch scratch;
  float* wide = scratch.get<float>(x.inputs);
  path.widen(row, x.dtype, x.inputs, wide);
  return wide;
}

// Where a panel's codes, steps and sums are put.
struct PanelSpace {
  int8_t* codes;
  int32_t* group_offset;
  int32_t* group_halves;
  float step[kPanelTokens];
  int32_t sum[kPanelTokens];

  Panel panel(long tokens, long blocks) const { return {codes, step, sum, tokens, blocks, group_offset, group_halves}; }
};

// The memory of a panel: its codes, then what it has for each group.
long codes_bytes(const TernaryWeight& w) { return kPanelTokens * w.blocks * kBlock; }
long panel_bytes(const TernaryWeight& w) {
  const long groups = w.groups() * kPanelTokens * static_cast<long>(2 * sizeof(int32_t));
  return (codes_bytes(w) + groups + 63) / 64 * 64;
}
PanelSpace panel_space(int8_t* memory, const TernaryWeight& w) {
  auto* offset = reinterpret_cast<int32_t*>(memory + codes_bytes(w));
  return {memory, offset, offset + kPanelTokens * w.groups(), {}, {}};
}

// The sum of `blocks` blocks of codes, `stride` bytes from each other.
int32_t sum_of_blocks(const int8_t* codes, long stride, long blocks) {
#if defined(__SSE2__)
  const __m128i offset = _mm_set1_epi8(static_cast<char>(0x80)), zero = _mm_setzero_si128();
  __m128i halves = zero;
  for (long b = 0; b < blocks; ++b) {
    const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + b * stride));
    halves = _mm_add_epi32(halves, _mm_sad_epu8(_mm_xor_si128(block, offset), zero));
  }
  const int32_t positive = _mm_cvtsi128_si32(_mm_add_epi32(halves, _mm_srli_si128(halves, 8)));
  return positive - static_cast<int32_t>(128 * kBlock * blocks);
#else
  int32_t sum = 0;
  for (long b = 0; b < blocks; ++b)
    for (long i = 0; i < kBlock; ++i) sum += codes[b * stride + i];
  return sum;
#endif
}

void fill(const Path& path, const Activations& x, long first, long tokens, PanelSpace& space) {
  for (long m = 0; m < tokens; ++m)
    path.quantize(token_of(path, x, first + m), x.inputs, x.norm_eps, space.codes + m * kBlock, tokens * kBlock,
                  space.step + m, space.sum + m);
}

void fill(const Path&, const QuantizedActivations& x, long first, long tokens, PanelSpace& space) {
  const long whole = x.inputs / kBlock, rest = x.inputs % kBlock;
  for (long m = 0; m < tokens; ++m) {
    const int8_t* from = x.codes + (first + m) * x.inputs;
    int8_t* to = space.codes + m * kBlock;
    for (long b = 0; b < whole; ++b) std::memcpy(to + b * tokens * kBlock, from + b * kBlock, kBlock);
    if (rest) {
      std::memset(to + whole * tokens * kBlock, 0, kBlock);
      std::memcpy(to + whole * tokens * kBlock, from + whole * kBlock, rest);
    }
    space.step[m] = x.step[first + m];
    space.sum[m] = x.sum[first + m];
  }
}

// A panel of `x` for a weight.
template <class X>
void prepare(const Path& path, const X& x, const TernaryWeight& w, long first, long tokens, PanelSpace& space) {
  fill(path, x, first, tokens, space);
  if (w.group_blocks)
    fill_group_offsets(space.codes, tokens, w.blocks, w.group_blocks, space.group_offset, space.group_halves);
}

// The panel times tiles [first, last), written to tokens from `token` on.
void multiply(const Path& path, const Panel& panel, const TernaryWeight& w, long first, long last, long token, void* y,
              Dtype dtype) {
  if (dtype == Dtype::float32)
    return path.ternary(panel, w, first, last, static_cast<float*>(y) + token * w.rows, w.rows);
  thread_local Scratch scratch;
  // Few tokens take many rows, for the weight to be read in long streams.
  const long chunk = kValuesAtOnce / panel.tokens / kTileRows, stride = chunk * kTileRows;
  float* wide = scratch.get<float>(kValuesAtOnce);
  for (long tile = first; tile < last; tile += chunk) {
    const long row = tile * kTileRows, end = std::min(tile + chunk, last);
    const long rows = std::min(end * kTileRows, w.rows) - row;
    path.ternary(panel, w, tile, end, wide - row, stride);
    for (long m = 0; m < panel.tokens; ++m)
      path.narrow(wide + m * stride, dtype, rows, static_cast<uint16_t*>(y) + (token + m) * w.rows + row);
  }
}

// Panels of nearly equal size: 9 tokens are 5 and 4, not 8 and 1.
struct Split {
  long tokens, count;
  long begin(long i) const { return i * tokens / count; }
  long size(long i) const { return begin(i + 1) - begin(i); }
};

template <class X>
void run(const Path& path, const X& x, const TernaryWeight& w, void* y, Dtype dtype) {
  if (x.tokens == 0 || w.rows == 0) return;
  const long tiles = tiles_of(w.rows);
  Split split{x.tokens, (x.tokens + kPanelTokens - 1) / kPanelTokens};
  const long products = x.tokens * std::max(x.inputs, 1L) * w.rows;
  const long threads = products < kSerialProducts ? 1 : thread_count();
  if (threads == 1 || split.count >= kPanelsPerThread * threads) {
    const long grain = std::max(1L, split.count * kProductsPerTask / products);
    return parallel_for(threads == 1, 0, split.count, grain, [&](long begin, long end) {
      thread_local Scratch scratch;
      PanelSpace space = panel_space(scratch.get<int8_t>(panel_bytes(w)), w);
      for (long i = begin; i < end; ++i) {
        prepare(path, x, w, split.begin(i), split.size(i), space);
        multiply(path, space.panel(split.size(i), w.blocks), w, 0, tiles, split.begin(i), y, dtype);
      }
    });
  }
  thread_local Scratch scratch;
  thread_local Scratch space_scratch;
  int8_t* memory = scratch.get<int8_t>(split.count * panel_bytes(w));
  PanelSpace* spaces = space_scratch.get<PanelSpace>(split.count);
  for (long i = 0; i < split.count; ++i) {
    spaces[i] = panel_space(memory + i * panel_bytes(w), w);
    prepare(path, x, w, split.begin(i), split.size(i), spaces[i]);
  }
  const long grain = std::max(1L, tiles * kProductsPerTask / products);
  parallel_for(false, 0, tiles, grain, [&](long begin, long end) {
    for (long i = 0; i < split.count; ++i)
      multiply(path, spaces[i].panel(split.size(i), w.blocks), w, begin, end, split.begin(i), y, dtype);
  });
}

}  // namespace

void fill_group_offsets(const int8_t* codes, long tokens, long blocks, long group_blocks, int32_t* offset,
                        int32_t* halves) {
  for (long first = 0; first < blocks; first += group_blocks, offset += tokens, halves += tokens)
    for (long m = 0; m < tokens; ++m) {
      const int8_t* group = codes + (first * tokens + m) * kBlock;
      const int32_t sum = sum_of_blocks(group, tokens * kBlock, std::min(group_blocks, blocks - first));
      offset[m] = -sum;
      const int16_t two[2] = {static_cast<int16_t>(-sum / 2), static_cast<int16_t>(-sum - -sum / 2)};
      std::memcpy(halves + m, two, sizeof(two));
    }
}

void ternary_linear(const Path& path, const Activations& x, const TernaryWeight& w, void* y, Dtype y_dtype) {
  run(path, x, w, y, y_dtype);
}

void ternary_linear(const Path& path, const QuantizedActivations& x, const TernaryWeight& w, void* y, Dtype y_dtype) {
  run(path, x, w, y, y_dtype);
}

void quantize_activations(const Path& path, const Activations& x, int8_t* codes, float* step, int32_t* sum) {
  const long grain = std::max(1L, 65536 / std::max(x.inputs, 1L));
  parallel_for(false, 0, x.tokens, grain, [&](long begin, long end) {
    thread_local Scratch scratch;
    const long padded = blocks_of(x.inputs) * kBlock;
    for (long m = begin; m < end; ++m) {
      // Blocks are written whole: a token whose length is no multiple of 16 would spill into the next one's.
      const bool whole = padded == x.inputs;
      int8_t* to = whole ? codes + m * x.inputs : scratch.get<int8_t>(padded);
      path.quantize(token_of(path, x, m), x.inputs, x.norm_eps, to, kBlock, step + m, sum + m);
      if (!whole) std::memcpy(codes + m * x.inputs, to, x.inputs);
    }
  });
}

void int8_linear(const Path& path, const Activations& x, const Int8Weight& w, void* y, Dtype y_dtype) {
  if (x.tokens == 0 || w.rows == 0) return;
  const long padded = (x.inputs + 63) / 64 * 64;
  thread_local Scratch code_scratch, step_scratch;
  int8_t* codes = code_scratch.get<int8_t>(x.tokens * padded);
  float* step = step_scratch.get<float>(x.tokens);
  for (long m = 0; m < x.tokens; ++m) {
    int32_t sum;
    std::memset(codes + m * padded + padded - 64 * (padded > 0), 0, padded > 0 ? 64 : 0);
    path.quantize(token_of(path, x, m), x.inputs, x.norm_eps, codes + m * padded, kBlock, step + m, &sum);
  }
  const long products = x.tokens * std::max(w.inputs, 1L) * w.rows;
  // One token: rows are read once, in long streams. More: rows that fit the first cache meet every token.
  const long cached = std::max(4L, 16384 / std::max(w.inputs, 1L) / 4 * 4);
  const long chunk = x.tokens == 1 ? w.rows : cached;
  const long grain = std::max(4L, w.rows * kProductsPerTask / products);
  parallel_for(products < kSerialProducts, 0, w.rows, grain, [&](long begin, long end) {
    thread_local Scratch scratch;
    float* wide = scratch.get<float>(chunk);
    for (long row = begin; row < end; row += chunk) {
      const long last = std::min(row + chunk, end);
      for (long m = 0; m < x.tokens; ++m) {
        if (y_dtype == Dtype::float32) {
          path.int8(codes + m * padded, step[m], w, row, last, static_cast<float*>(y) + m * w.rows);
        } else {
          path.int8(codes + m * padded, step[m], w, row, last, wide - row);
          path.narrow(wide, y_dtype, last - row, static_cast<uint16_t*>(y) + m * w.rows + row);
        }
      }
    }
  });
}

}  // namespace frankenlm

// Compares code paths with plain C++ to the last bit, without torch: for processors that are only emulated.
//
//   compare_paths PROBLEMS              prints the paths that this processor has; then "alike", or what differs
//   compare_paths PROBLEMS wrong PART   plain C++ with one function made wrong: the comparison has to see it
//
// Every problem goes through each function of a path by itself, with codes that quantisation would never give, and
// through one half of the operators, on one thread or two. What is read and written ends where nobody's memory begins.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "problems.h"

using namespace frankenlm;

static long threads = 1;

// torch's thread pool, as far as the operators use it
extern "C" AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = static_cast<uint32_t>(threads);
  return 0;
}

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  const int64_t middle = begin + (end - begin) / threads;
  std::thread other([=] { body(middle, end, context); });
  body(begin, middle, context);
  other.join();
  return 0;
}

namespace {

// Two numbers are alike if their bits are, or if both are NaN: which NaN differs between instructions.
bool alike(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0 || (a != a && b != b); }
bool alike(uint16_t a, uint16_t b, Dtype dtype) {
  const uint16_t infinity = dtype == Dtype::float16 ? 0x7c00 : 0x7f80;
  return a == b || ((a & 0x7fff) > infinity && (b & 0x7fff) > infinity);
}

using Paths = std::vector<const Path*>;

void fail(const Path& path, const char* what, long problem) {
  std::printf("%s differs from plain C++: %s, problem %ld\n", path.name, what, problem);
  std::exit(1);
}

void compare(const Path& path, const char* what, long problem, Floats& got, Floats& expected) {
  for (long i = 0; i < got.bytes() / 4; ++i)
    if (!alike(got[i], expected[i])) fail(path, what, problem);
}

template <class T>
void compare_bytes(const Path& path, const char* what, long problem, Guarded<T>& got, Guarded<T>& expected) {
  if (std::memcmp(got.data(), expected.data(), got.bytes()) != 0) fail(path, what, problem);
}

void compare_formats(const Paths& paths, long problem, const float* x, long count) {
  for (const Dtype dtype : {Dtype::bfloat16, Dtype::float16}) {
    Halves got(count), expected(count);
    Floats wide(count), expected_wide(count);
    kScalar.narrow(x, dtype, count, expected.data());
    kScalar.widen(expected.data(), dtype, count, expected_wide);
    for (const Path* path : paths) {
      path->narrow(x, dtype, count, got.data());
      for (long i = 0; i < count; ++i)
        if (!alike(got[i], expected[i], dtype)) fail(*path, "narrow", problem);
      path->widen(expected.data(), dtype, count, wide);
      compare(*path, "widen", problem, wide, expected_wide);
    }
  }
}

void compare_quantize(const Paths& paths, const Problem& p, Memory& memory) {
  const long blocks = blocks_of(p.inputs), stride = kBlock * (1 + p.number % 3), bytes = (blocks - 1) * stride + kBlock;
  for (long m = 0; m < p.tokens; ++m) {
    Floats x(p.inputs), expected_step(1);
    std::memcpy(x.data(), memory.x + m * p.inputs, x.bytes());
    Bytes expected(bytes);
    Guarded<int32_t> expected_sum(1);
    kScalar.quantize(x, p.inputs, p.norm_eps, expected, stride, expected_step, expected_sum);
    for (const Path* path : paths) {
      Floats step(1);
      Bytes got(bytes);
      Guarded<int32_t> sum(1);
      path->quantize(x, p.inputs, p.norm_eps, got, stride, step, sum);
      compare_bytes(*path, "quantize's codes", p.number, got, expected);
      compare_bytes(*path, "quantize's sum", p.number, sum, expected_sum);
      compare(*path, "quantize's step", p.number, step, expected_step);
    }
  }
}

void compare_ternary(const Paths& paths, const Problem& p, Memory& memory, Draw& draw) {
  const long tokens = p.tokens < kPanelTokens ? p.tokens : kPanelTokens, blocks = blocks_of(p.inputs);
  if (tokens == 0) return;
  Bytes panel(blocks * tokens * kBlock);
  std::memset(panel.data(), 0, panel.bytes());
  for (long m = 0; m < tokens; ++m)
    for (long k = 0; k < p.inputs; ++k)
      panel[(k / 16 * tokens + m) * kBlock + k % 16] = memory.codes[m * p.inputs + k];
  const long first = draw.below(tiles_of(p.rows)), last = first + 1 + draw.below(tiles_of(p.rows) - first);
  const long stride = p.rows + p.number % 4, count = (tokens - 1) * stride + std::min(last * kTileRows, p.rows);
  Guarded<int32_t> offset(groups(p) * tokens), offset_halves(groups(p) * tokens);
  if (p.group_blocks) fill_group_offsets(panel, tokens, blocks, p.group_blocks, offset, offset_halves);
  const Panel codes{panel, memory.step, memory.sum, tokens, blocks, offset, offset_halves};
  Floats expected(count);
  kScalar.ternary(codes, ternary_weight(p, memory), first, last, expected, stride);
  for (const Path* path : paths) {
    Floats got(count);
    path->ternary(codes, ternary_weight(p, memory), first, last, got, stride);
    compare(*path, "ternary", p.number, got, expected);
  }
}

void compare_int8(const Paths& paths, const Problem& p, Memory& memory, Draw& draw) {
  const long first = draw.below(p.rows), last = first + 1 + draw.below(p.rows - first);
  for (long m = 0; m < std::min(p.tokens, 2L); ++m) {
    const int8_t* codes = memory.padded_codes + m * padded(p.inputs);
    Floats expected(last);
    kScalar.int8(codes, memory.step[m], int8_weight(p, memory), first, last, expected);
    for (const Path* path : paths) {
      Floats got(last);
      path->int8(codes, memory.step[m], int8_weight(p, memory), first, last, got);
      compare(*path, "int8", p.number, got, expected);
    }
  }
}

// Compares what `call(path, y)` writes, numbers of the problem's format.
template <class Call>
void compare_results(const Paths& paths, const char* what, const Problem& p, const Call& call) {
  const long count = p.tokens * p.rows;
  if (p.dtype == Dtype::float32) {
    Floats got(count), expected(count);
    call(kScalar, expected.data());
    for (const Path* path : paths) {
      call(*path, got.data());
      compare(*path, what, p.number, got, expected);
    }
    return;
  }
  Halves got(count), expected(count);
  call(kScalar, expected.data());
  for (const Path* path : paths) {
    call(*path, got.data());
    for (long i = 0; i < count; ++i)
      if (!alike(got[i], expected[i], p.dtype)) fail(*path, what, p.number);
  }
}

void compare_ternary_operators(const Paths& paths, const Problem& p, Memory& memory) {
  const Activations x{memory.data(p), p.dtype, p.tokens, p.inputs, p.norm_eps};
  const QuantizedActivations quantized{memory.codes, memory.step, memory.sum, p.tokens, p.inputs};
  const TernaryWeight ternary = ternary_weight(p, memory);
  compare_results(paths, "ternary_linear", p,
                  [&](const Path& with, void* y) { ternary_linear(with, x, ternary, y, p.dtype); });
  compare_results(paths, "ternary_linear_quantized", p,
                  [&](const Path& with, void* y) { ternary_linear(with, quantized, ternary, y, p.dtype); });
}

void compare_other_operators(const Paths& paths, const Problem& p, Memory& memory) {
  const Activations x{memory.data(p), p.dtype, p.tokens, p.inputs, p.norm_eps};
  compare_results(paths, "int8_linear", p,
                  [&](const Path& with, void* y) { int8_linear(with, x, int8_weight(p, memory), y, p.dtype); });
  Bytes expected(p.tokens * p.inputs);
  Floats expected_step(p.tokens);
  Guarded<int32_t> expected_sum(p.tokens);
  quantize_activations(kScalar, x, expected, expected_step, expected_sum);
  for (const Path* path : paths) {
    Bytes got(p.tokens * p.inputs);
    Floats step(p.tokens);
    Guarded<int32_t> sum(p.tokens);
    quantize_activations(*path, x, got, step, sum);
    compare_bytes(*path, "quantize_activations' codes", p.number, got, expected);
    compare_bytes(*path, "quantize_activations' sums", p.number, sum, expected_sum);
    compare(*path, "quantize_activations' steps", p.number, step, expected_step);
  }
}

void compare_problem(const Paths& paths, const Problem& p) {
  Draw draw{static_cast<uint64_t>(p.number)};
  Memory memory(p, draw);
  compare_formats(paths, p.number, memory.x, p.tokens * p.inputs);
  compare_quantize(paths, p, memory);
  compare_ternary(paths, p, memory, draw);
  compare_int8(paths, p, memory, draw);
  (p.number / 4 % 2 ? compare_ternary_operators : compare_other_operators)(paths, p, memory);
}

// Every half, and floats on both sides of every tie between two of them.
void compare_all_numbers(const Paths& paths) {
  constexpr uint32_t low[] = {0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff};
  Floats x(65536 * 9);
  for (uint32_t i = 0; i < 65536 * 9; ++i) x[i] = bits_as<float>(i / 9 << 16 | low[i % 9]);
  compare_formats(paths, 0, x, 65536 * 9);
  Halves halves(65536);
  for (long i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
  for (const Dtype dtype : {Dtype::bfloat16, Dtype::float16}) {
    Floats got(65536), expected(65536);
    kScalar.widen(halves.data(), dtype, 65536, expected);
    for (const Path* path : paths) {
      path->widen(halves.data(), dtype, 65536, got);
      compare(*path, "widen", 0, got, expected);
    }
  }
}

// The largest sums there may be, at both ends of the range.
void compare_largest(const Paths& paths) {
  for (const long kind : {1L, 3L}) {
    for (const long inputs : {512L, 528L, 8193L, kMaxInt8Inputs})
      for (const long tokens : {1L, 2L, 3L, 8L})
        if (inputs < 10000 || tokens < 3) {
          const long rows = inputs < 1000 ? 17 : 4;
          compare_problem(paths, {inputs, tokens, inputs, rows, Dtype::float32, -1.0f, false, kind});
        }
    const Problem p{0, 2, kMaxTernaryInputs, 1, Dtype::float32, -1.0f, false, kind};
    Draw draw{1};
    Memory memory(p, draw);
    compare_ternary(paths, p, memory, draw);
  }
}

void compare_drawn(const Paths& paths, long problems) {
  Draw draw{1};
  for (long i = 0; i < problems; ++i) {
    threads = 1 + i / 2 % 2;
    compare_problem(paths, draw_problem(i, draw));
  }
  threads = 1;
#if defined(__aarch64__)
  // Programs may have denormal numbers flushed to zero, or every NaN replaced by one: bits 24 and 25.
  uint64_t usual;
  asm volatile("mrs %0, fpcr" : "=r"(usual));
  for (const uint64_t mode : {1ull << 24, 1ull << 25, 3ull << 24}) {
    asm volatile("msr fpcr, %0" ::"r"(usual | mode));
    for (long i = 0; i < problems / 30; ++i) compare_problem(paths, draw_problem(problems + i, draw));
  }
  asm volatile("msr fpcr, %0" ::"r"(usual));
#endif
}

// Plain C++ whose last result of one function is off by one bit.
std::string wrong_part;
void spoil(const char* part, void* last) {
  if (wrong_part == part) *static_cast<uint8_t*>(last) ^= 1;
}

const Path kWrong = {
    "wrong",
    [] { return true; },
    [](const void* x, Dtype dtype, long count, float* out) {
      kScalar.widen(x, dtype, count, out);
      if (count) spoil("widen", out + count - 1);
    },
    [](const float* x, Dtype dtype, long count, void* out) {
      kScalar.narrow(x, dtype, count, out);
      if (count) spoil("narrow", static_cast<uint16_t*>(out) + count - 1);
    },
    [](const float* x, long inputs, float norm_eps, int8_t* codes, long stride, float* step, int32_t* sum) {
      kScalar.quantize(x, inputs, norm_eps, codes, stride, step, sum);
      spoil("quantize", codes + (blocks_of(inputs) - 1) * stride + kBlock - 1);
    },
    [](const Panel& p, const TernaryWeight& w, long first, long last, float* y, long y_stride) {
      kScalar.ternary(p, w, first, last, y, y_stride);
      spoil("ternary", y + (p.tokens - 1) * y_stride + (last * kTileRows < w.rows ? last * kTileRows : w.rows) - 1);
    },
    [](const int8_t* codes, float step, const Int8Weight& w, long first, long last, float* y) {
      kScalar.int8(codes, step, w, first, last, y);
      spoil("int8", y + last - 1);
    },
};

}  // namespace

int main(int count, char** words) {
  const long problems = std::atol(words[1]);
  if (count == 4 && std::strcmp(words[2], "wrong") == 0) {
    wrong_part = words[3];
    compare_drawn({&kWrong}, problems);
    return 0;
  }
  Paths paths;
  std::string names;
  for (const Path* const* path = all_paths(); *path; ++path) {
    if (!(*path)->available()) continue;
    paths.push_back(*path);
    names += (names.empty() ? "" : " ") + std::string((*path)->name);
  }
  std::printf("%s\n", names.c_str());
  if (&chosen_path() != paths[0]) return std::printf("but %s runs\n", chosen_path().name), 1;
  paths.pop_back();  // plain C++ is always there, last
  compare_drawn(paths, problems);
  compare_all_numbers(paths);
  compare_largest(paths);
  std::printf("alike\n");
}

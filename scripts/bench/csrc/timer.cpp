// The raw operator in a loop, as a graph of another library runs its own: no tensors, no dispatcher, no Python.
#include <cstdint>
#include <cstdio>
#include <exception>

#include "ternary.h"
#include "clock.h"

namespace frankenlm {

// One problem; `tiles` are `copies` places of the same weight, so that more of them than a cache holds come from memory.
// `group_scales` are null, or as many places of bfloat16 scales of groups of `group_size` inputs.
struct Problem {
  const char* path;
  const void* x;
  int32_t dtype;
  int64_t tokens;
  int64_t inputs;
  const uint8_t* const* tiles;
  int64_t copies;
  const float* scale;
  int64_t rows;
  void* y;
  const uint16_t* const* group_scales;
  int64_t group_size;
};

TernaryWeight weight_of(const Problem& p, long copy) {
  TernaryWeight weight{p.tiles[copy], p.scale, nullptr, p.rows, blocks_of(p.inputs)};
  if (p.group_scales) {
    weight.group_scale = p.group_scales[copy];
    weight.group_blocks = p.group_size / kBlock;
  }
  return weight;
}

// Name of the i-th path, fastest first, or null behind the last; `available` tells whether this processor has it.
FRANKENLM_EXPORT const char* frankenlm_path(long i, int32_t* available) {
  const Path* path = all_paths()[i];
  *available = path && path->available();
  return path ? path->name : nullptr;
}

// Multiplies `calls` times, with weight number first, first + 1, ... of the copies. Returns 0, or 1 with a message.
FRANKENLM_EXPORT int32_t frankenlm_time_ternary(const Problem* problem, long first, long calls, Times* times,
                                                char* message, long message_size) {
  try {
    const Problem& p = *problem;
    const Path& path = path_by_name(p.path);
    const Dtype dtype = static_cast<Dtype>(p.dtype);
    const Activations x{p.x, dtype, p.tokens, p.inputs, -1.0f};
    *times = timed([&] {
      for (long call = first; call < first + calls; ++call)
        ternary_linear(path, x, weight_of(p, call % p.copies), p.y, dtype);
    });
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, static_cast<size_t>(message_size), "%s", error.what());
    return 1;
  }
}

}  // namespace frankenlm

// What this machine can do at most: products a second of the instructions the paths are made of, and bytes a second read.
//
// Each loop is one block of assembly, for a compiler would add moves or leave out loads that nobody uses. A loop runs
// only where the processor has its instruction; threads come from torch's pool, as the operators' do.
#include <cstdint>
#include <cstring>

#include "threads.h"
#include "clock.h"

namespace frankenlm {
namespace {

struct Instruction {
  const char* name;
  bool (*available)();
  void (*loop)(long turns);
  long products;  // of a turn
};

#if defined(__x86_64__)

// Register names up to the sixteenth serve every vector width.
#define CLOBBERS                                                                                                    \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15", "cc"
#define TIMES_8(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7)
#define TIMES_14(f) TIMES_8(f) f(8) f(9) f(10) f(11) f(12) f(13)
#define LOOP(setup, body) \
  asm volatile(setup "1:\n\t" body "dec %0\n\tjnz 1b\n\t" : "+r"(turns) : : CLOBBERS)
// Clears what lies above 128 bits, which would slow every SSE instruction that follows; the compiler does not see into
// the loops and so does not do it.
#define CLEAN_UP() asm volatile("vzeroupper" : : : CLOBBERS)

// 255 * -1 and not 0 * 0, which would draw less power. 14 independent sums hide a latency of up to 7 cycles at two instructions a cycle.
__attribute__((target("avx512f,avx512vnni"))) void dpbusd_512(long turns) {
#define CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define ONES(i) "vpternlogd $255, %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define STEP(i) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #i "\n\t"
  LOOP(TIMES_14(CLEAR) ONES(14) ONES(15), TIMES_14(STEP));
  CLEAN_UP();
#undef CLEAR
#undef ONES
#undef STEP
}

#define CLEAR(i) "vpxor %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n\t"
#define ONES(i) "vpcmpeqb %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n\t"
__attribute__((target("avx512f,avx512vl,avx512vnni"))) void dpbusd_256_evex(long turns) {
#define STEP(i) "%{evex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #i "\n\t"
  LOOP(TIMES_14(CLEAR) ONES(14) ONES(15), TIMES_14(STEP));
  CLEAN_UP();
#undef STEP
}

__attribute__((target("avx2"))) void dpbusd_256_vex(long turns) {
#define STEP(i) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #i "\n\t"
  LOOP(TIMES_14(CLEAR) ONES(14) ONES(15), TIMES_14(STEP));
  CLEAN_UP();
#undef STEP
}

// Without VNNI products of pairs are added in 16 bits: two instructions for 32 products.
__attribute__((target("avx2"))) void maddubs_256(long turns) {
#define STEP(i) "vpmaddubsw %%ymm14, %%ymm15, %%ymm8\n\tvpaddw %%ymm8, %%ymm" #i ", %%ymm" #i "\n\t"
  LOOP(TIMES_14(CLEAR) ONES(14) ONES(15), TIMES_8(STEP));
  CLEAN_UP();
#undef STEP
}
#undef CLEAR
#undef ONES

#define CLEAR(i) "pxor %%xmm" #i ", %%xmm" #i "\n\t"
#define ONES(i) "pcmpeqb %%xmm" #i ", %%xmm" #i "\n\t"
__attribute__((target("ssse3"))) void maddubs_128(long turns) {
#define STEP(i) "movdqa %%xmm15, %%xmm8\n\tpmaddubsw %%xmm14, %%xmm8\n\tpaddw %%xmm8, %%xmm" #i "\n\t"
  LOOP(TIMES_14(CLEAR) ONES(14) ONES(15), TIMES_8(STEP));
#undef STEP
}

// What a compiler may use for plain C++ on any x86-64: 8 products of 16 bits.
void madd_128(long turns) {
#define STEP(i) "movdqa %%xmm15, %%xmm8\n\tpmaddwd %%xmm14, %%xmm8\n\tpaddd %%xmm8, %%xmm" #i "\n\t"
  LOOP(TIMES_14(CLEAR) ONES(14) ONES(15), TIMES_8(STEP));
#undef STEP
}
#undef CLEAR
#undef ONES

bool has_evex() { return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"); }

const Instruction kInstructions[] = {
    {"vpdpbusd zmm", [] { return __builtin_cpu_supports("avx512vnni") != 0; }, dpbusd_512, 14 * 64},
    {"vpdpbusd ymm", [] { return has_evex() || __builtin_cpu_supports("avxvnni"); },
     [](long turns) { has_evex() ? dpbusd_256_evex(turns) : dpbusd_256_vex(turns); }, 14 * 32},
    {"vpmaddubsw ymm", [] { return __builtin_cpu_supports("avx2") != 0; }, maddubs_256, 8 * 32},
    {"pmaddubsw xmm", [] { return __builtin_cpu_supports("ssse3") != 0; }, maddubs_128, 8 * 16},
    {"pmaddwd xmm", [] { return true; }, madd_128, 8 * 8},
    {nullptr, nullptr, nullptr, 0},
};

// Eight registers a turn, from one place or, as four tiles at once are read, from four places `quarter` bytes apart.
#define READ_LOOP(move, reg, width)                                                                              \
  if (quarter == 0) {                                                                                            \
    for (long left = bytes / (8 * width); left > 0;)                                                             \
      asm volatile(                                                                                              \
          "1:\n\t" move " 0*" #width "(%1), %%" reg "0\n\t" move " 1*" #width "(%1), %%" reg "1\n\t" move        \
          " 2*" #width "(%1), %%" reg "2\n\t" move " 3*" #width "(%1), %%" reg "3\n\t" move " 4*" #width         \
          "(%1), %%" reg "4\n\t" move " 5*" #width "(%1), %%" reg "5\n\t" move " 6*" #width "(%1), %%" reg       \
          "6\n\t" move " 7*" #width "(%1), %%" reg "7\n\tadd $8*" #width ", %1\n\tdec %0\n\tjnz 1b\n\t"          \
          : "+r"(left), "+r"(from)                                                                               \
          :                                                                                                      \
          : CLOBBERS, "memory");                                                                                 \
  } else {                                                                                                       \
    const char* last = from + 3 * quarter;                                                                       \
    for (long left = quarter / (2 * width); left > 0;)                                                           \
      asm volatile(                                                                                              \
          "1:\n\t" move " (%1), %%" reg "0\n\t" move " (%1,%3), %%" reg "1\n\t" move " (%1,%3,2), %%" reg        \
          "2\n\t" move " (%2), %%" reg "3\n\t" move " " #width "(%1), %%" reg "4\n\t" move " " #width            \
          "(%1,%3), %%" reg "5\n\t" move " " #width "(%1,%3,2), %%" reg "6\n\t" move " " #width "(%2), %%" reg   \
          "7\n\tadd $2*" #width ", %1\n\tadd $2*" #width ", %2\n\tdec %0\n\tjnz 1b\n\t"                          \
          : "+r"(left), "+r"(from), "+r"(last)                                                                   \
          : "r"(quarter)                                                                                         \
          : CLOBBERS, "memory");                                                                                 \
  }

__attribute__((target("avx512f"))) void read_512(const char* from, long bytes, long quarter) {
  READ_LOOP("vmovdqu64", "zmm", 64)
  CLEAN_UP();
}
__attribute__((target("avx2"))) void read_256(const char* from, long bytes, long quarter) {
  READ_LOOP("vmovdqu", "ymm", 32)
  CLEAN_UP();
}
void read_128(const char* from, long bytes, long quarter) { READ_LOOP("movdqu", "xmm", 16) }

void read_once(const char* from, long bytes, long quarter) {
  if (__builtin_cpu_supports("avx512f")) return read_512(from, bytes, quarter);
  if (__builtin_cpu_supports("avx2")) return read_256(from, bytes, quarter);
  read_128(from, bytes, quarter);
}

#else  // other processors: no loops of products yet, and reads as the compiler makes them

const Instruction kInstructions[] = {{nullptr, nullptr, nullptr, 0}};

void read_once(const char* from, long bytes, long) {
  uint64_t sum = 0, word;
  for (long i = 0; i + 8 <= bytes; i += 8) {
    std::memcpy(&word, from + i, 8);
    sum |= word;
  }
  asm volatile("" : : "r"(sum) : "memory");
}

#endif

// Both kinds of loop advance in whole turns; a thread's share is cut to a multiple of this.
constexpr long kReadUnit = 512;

}  // namespace

// Name of the i-th instruction, or null behind the last; `available` tells whether this processor has it.
FRANKENLM_EXPORT const char* frankenlm_instruction(long i, int32_t* available) {
  const Instruction& instruction = kInstructions[i];
  *available = instruction.name && instruction.available();
  return instruction.name;
}

// Runs `turns` of the i-th instruction's loop on each of torch's threads. Returns the products of all of them.
FRANKENLM_EXPORT double frankenlm_time_peak(long i, long turns, Times* times) {
  const Instruction& instruction = kInstructions[i];
  const long threads = thread_count();
  *times = timed([&] {
    parallel_for(threads == 1, 0, threads, 1, [&](long begin, long end) {
      for (long thread = begin; thread < end; ++thread) instruction.loop(turns);
    });
  });
  return static_cast<double>(instruction.products) * static_cast<double>(turns) * static_cast<double>(threads);
}

// Reads `calls` weights of `bytes` each, from places[first % copies] on, each of torch's threads its own share of every
// weight, in one stream or in four. Returns the bytes read.
FRANKENLM_EXPORT double frankenlm_time_read(const char* const* places, long copies, long first, long bytes, long calls,
                                            int32_t four_streams, Times* times) {
  const long threads = thread_count(), share = bytes / threads / kReadUnit * kReadUnit;
  *times = timed([&] {
    parallel_for(threads == 1, 0, threads, 1, [&](long begin, long end) {
      for (long thread = begin; thread < end; ++thread)
        for (long call = 0; call < calls; ++call)
          read_once(places[(first + call) % copies] + thread * share, share, four_streams ? share / 4 : 0);
    });
  });
  return static_cast<double>(share) * static_cast<double>(threads) * static_cast<double>(calls);
}

}  // namespace frankenlm

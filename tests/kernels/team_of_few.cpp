// A call of several stages on pools that give it fewer threads than it has shares: it ends, and leaves nothing out.
//
//   team_of_few POOL      prints the number of threads that worked, then "right", or what was left out
//
// POOL: each (a thread for each share), lump (all shares in one call), one (a thread takes share after share), few
// (two threads take them in turn), last (as `one`, from the last share on).
#include <torch/csrc/stable/c/shim.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "team.h"

static constexpr long kShares = 5, kItems = 101, kRounds = 50;
static std::string pool;

extern "C" AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = kShares;
  return 0;
}

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body, void* context) {
  if (pool == "lump") return body(begin, end, context), 0;
  std::atomic<int64_t> next{begin};
  const auto work = [&] {
    for (int64_t i; (i = next++) < end;) {
      const int64_t share = pool == "last" ? begin + end - 1 - i : i;
      body(share, share + 1, context);
    }
  };
  const long others = pool == "each" ? end - begin - 1 : pool == "few" ? 1 : 0;
  std::vector<std::thread> threads;
  for (long i = 0; i < others; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return 0;
}

int main(int count, char** words) {
  pool = count > 1 ? words[1] : "";
  long most = 0;
  for (long round = 0; round < kRounds; ++round) {
    std::vector<long> first(kItems, 0), second(kItems, 0);
    std::atomic<long> workers{0};
    frankenlm::as_team(kShares, [&](frankenlm::Team& team) {
      ++workers;
      if (team.place() < 0 || team.place() >= team.count() || team.count() > kShares) std::exit(1);
      const auto [begin, end] = team.share(kItems);
      for (long i = begin; i < end; ++i) first[i] += i + 1;
      team.meet();
      long sum = 0;  // of what all threads have written
      for (const long value : first) sum += value;
      for (long i = begin; i < end; ++i) second[i] += sum;
      team.meet();
    });
    for (const long value : second)
      if (value != kItems * (kItems + 1) / 2) return std::printf("an item has %ld\n", value), 1;
    most = workers > most ? workers.load() : most;
  }
  std::printf("%ld right\n", most);
}

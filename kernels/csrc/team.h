// The threads that share one call from beginning to end, and meet at barriers inside it.
//
// Starting threads costs some ten microseconds, an operator of a small layer less: a call of many stages starts them
// once. torch's pool hands out indices, and may give several of them, or all, to one thread: a thread stands for as
// many shares of the work as it got indices, and the barrier counts shares. So a call is right with any number of
// threads; it only must not wait for indices that nobody has taken up yet.
#pragma once

#include <atomic>
#include <thread>
#include <utility>

#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace frankenlm {

class Barrier {
 public:
  explicit Barrier(long shares) : shares_(shares) {}

  // Returns when all shares have come `meeting` times.
  void meet(long shares, long meeting) {
    const long all = shares_ * meeting;
    if (arrived_.fetch_add(shares, std::memory_order_acq_rel) + shares >= all) return;
    for (long tries = 0; arrived_.load(std::memory_order_acquire) < all; ++tries) {
      if (tries < kSpins) pause();
      else std::this_thread::yield();  // there may be fewer cores than threads
    }
  }

 private:
  static constexpr long kSpins = 200;  // some microseconds; yielding costs hardly more where nobody else wants the core

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const long shares_;
  alignas(64) std::atomic<long> arrived_{0};
};

// One thread's place in the team: it has the shares [first, last) of `count`.
class Team {
 public:
  Team(long first, long last, long count, Barrier& barrier)
      : first_(first), last_(last), count_(count), barrier_(barrier) {}

  long place() const { return first_; }
  long count() const { return count_; }
  // The range of `items` that is this thread's.
  std::pair<long, long> share(long items) const { return {items * first_ / count_, items * last_ / count_}; }
  // Waits until every thread of the team is here.
  void meet() { barrier_.meet(last_ - first_, ++meetings_); }

 private:
  const long first_, last_, count_;
  long meetings_ = 0;
  Barrier& barrier_;
};

// Calls body(team) on up to `count` threads at once. The body may not throw: the others would wait for ever.
template <class Body>
void as_team(long count, const Body& body) {
  Barrier barrier(count);
  parallel_for(count == 1, 0, count, 1, [&](long first, long last) {
    Team team(first, last, count, barrier);
    body(team);
  });
}

}  // namespace frankenlm

// The threads that share one call from beginning to end, and meet at barriers inside it.
//
// Starting threads costs some ten microseconds, an operator of a small layer less: a call of many stages starts them
// once. torch's pool hands out shares of a call, and may give several of them, or all, to one thread, at once or one
// after the other: a thread that waited for a share which nobody has taken up yet might wait for ever. So the team are
// those who are there when its roll is closed: with the last share, or when the first has waited long enough. Who comes
// later finds the work taken.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>

#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace frankenlm {

// One look after another at what another thread is to do: without a word at first, then giving way.
class Wait {
 public:
  void again() {
    if (tries_++ < kSpins) pause();
    else std::this_thread::yield();  // there may be fewer cores than threads
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

  long tries_ = 0;
};

// Who takes part in a call of so many shares.
class Roll {
 public:
  explicit Roll(long shares) : shares_(static_cast<uint64_t>(shares)) {}

  // Enters a thread that was given some of the shares; returns its place once the roll is closed, or -1 if it was.
  long enter(long shares) {
    uint64_t before = state_.load(std::memory_order_acquire), after;
    do {
      if (before & kClosed) return -1;
      after = before + kMember + static_cast<uint64_t>(shares);
      if ((after & kShares) == shares_) after |= kClosed;
    } while (!state_.compare_exchange_weak(before, after, std::memory_order_acq_rel));
    const long place = members(before);
    if (place == 0) close_in_time();
    for (Wait wait; !closed(); wait.again()) {
    }
    return place;
  }

  // The number of threads, once the roll is closed.
  long members() const { return members(state_.load(std::memory_order_acquire)); }

 private:
  static constexpr uint64_t kClosed = uint64_t{1} << 63, kMember = uint64_t{1} << 32, kShares = kMember - 1;
  // A thread that sleeps wakes in a tenth of this; a pool that runs shares one by one costs a call as much.
  static constexpr std::chrono::milliseconds kPatience{2};

  static long members(uint64_t state) { return static_cast<long>((state & ~kClosed) / kMember); }
  bool closed() const { return state_.load(std::memory_order_acquire) & kClosed; }

  void close_in_time() {
    Wait wait;
    for (const auto end = std::chrono::steady_clock::now() + kPatience; !closed(); wait.again())
      if (std::chrono::steady_clock::now() >= end) state_.fetch_or(kClosed, std::memory_order_acq_rel);
  }

  const uint64_t shares_;
  alignas(64) std::atomic<uint64_t> state_{0};
};

class Barrier {
 public:
  // Returns when all `members` have come `meeting` times.
  void meet(long members, long meeting) {
    const long all = members * meeting;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 >= all) return;
    for (Wait wait; arrived_.load(std::memory_order_acquire) < all; wait.again()) {
    }
  }

 private:
  alignas(64) std::atomic<long> arrived_{0};
};

// One thread's place in the team of `count`.
class Team {
 public:
  Team(long place, long count, Barrier& barrier) : place_(place), count_(count), barrier_(barrier) {}

  long place() const { return place_; }
  long count() const { return count_; }
  // The range of `items` that is this thread's.
  std::pair<long, long> share(long items) const {
    return {items * place_ / count_, items * (place_ + 1) / count_};
  }
  // Waits until every thread of the team is here.
  void meet() { barrier_.meet(count_, ++meetings_); }

 private:
  const long place_, count_;
  long meetings_ = 0;
  Barrier& barrier_;
};

// Calls body(team) on up to `count` threads at once. The body may not throw: the others would wait for ever.
template <class Body>
void as_team(long count, const Body& body) {
  Roll roll(count);
  Barrier barrier;
  parallel_for(count == 1, 0, count, 1, [&](long first, long last) {
    const long place = roll.enter(last - first);
    if (place < 0) return;
    Team team(place, roll.members(), barrier);
    body(team);
  });
}

}  // namespace frankenlm

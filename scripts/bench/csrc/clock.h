// Two clocks at once: the wall's, and what this thread got of the processor, which a busy machine does not lengthen.
#pragma once

#include <ctime>

namespace frankenlm {

struct Times {
  double wall;
  double processor;
};

inline double seconds_of(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Seconds that `body` takes.
template <class Body>
Times timed(const Body& body) {
  const double wall = seconds_of(CLOCK_MONOTONIC), processor = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  body();
  return {seconds_of(CLOCK_MONOTONIC) - wall, seconds_of(CLOCK_THREAD_CPUTIME_ID) - processor};
}

}  // namespace frankenlm

#define FRANKENLM_EXPORT extern "C" __attribute__((visibility("default")))

// torch's own thread pool, through its stable C interface: a second pool would fight it for the cores.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>

namespace frankenlm {

inline long thread_count() {
  uint32_t count = 1;
  if (torch_get_num_threads(&count) != 0) throw std::runtime_error("torch_get_num_threads failed");
  return count;
}

// Calls body(begin, end) over ranges that cover [first, last), at least `grain` long; plainly when `serial`.
template <class Body>
void parallel_for(bool serial, long first, long last, long grain, const Body& body) {
  if (serial || last - first <= grain) {
    if (first < last) body(first, last);
    return;
  }
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(static_cast<long>(begin), static_cast<long>(end));
  };
  if (torch_parallel_for(first, last, grain, call, const_cast<Body*>(&body)) != 0)
    throw std::runtime_error("a parallel operator failed");
}

}  // namespace frankenlm

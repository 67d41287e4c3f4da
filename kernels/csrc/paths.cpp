// Which code path runs: the fastest that the processor has, unless FRANKENLM_TERNARY_PATH names another.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ternary.h"

namespace frankenlm {

const Path* const* all_paths() {
  static const Path* const paths[] = {
#if defined(__x86_64__)
      &kAvx512Vnni, &kAvxVnni, &kAvx2, &kSse41,
#elif defined(__aarch64__)
      &kNeonDotprod, &kNeon,
#endif
      &kScalar, nullptr};
  return paths;
}

const Path& path_by_name(const char* name) {
  std::string names;
  for (const Path* const* path = all_paths(); *path; ++path) {
    if (std::strcmp((*path)->name, name) != 0) {
      names += (names.empty() ? "" : ", ") + std::string((*path)->name);
      continue;
    }
    if (!(*path)->available())
      throw std::runtime_error(std::string("code path ") + name + ": this processor lacks its instructions");
    return **path;
  }
  throw std::runtime_error(std::string("code path ") + name + ": there is none of this name; there are reference, " + names);
}

namespace {

const Path& fastest_path() {
  const Path* const* path = all_paths();
  while (!(*path)->available()) ++path;  // the scalar path, last, always is
  return **path;
}

// Decided once, at the first question.
std::atomic<const Path*>& current() {
  static std::atomic<const Path*> path = [] {
    const char* forced = std::getenv("FRANKENLM_TERNARY_PATH");
    return forced && *forced ? &path_by_name(forced) : &fastest_path();
  }();
  return path;
}

}  // namespace

const Path& chosen_path() { return *current().load(std::memory_order_relaxed); }

void choose_path(const char* name) { current() = &path_by_name(name); }

}  // namespace frankenlm

// Memory that ends where nobody's begins: what reads or writes a value too far stops the program.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

// Memory for `count` values behind which lies a page that must not be touched. Mappings are used again.
template <class T>
class Guarded {
 public:
  explicit Guarded(long count) : bytes_(count * static_cast<long>(sizeof(T))) {
    const long page = sysconf(_SC_PAGESIZE);
    usable_ = (bytes_ + page - 1) / page * page;
    std::vector<char*>& spare = spares()[usable_];
    if (spare.empty()) {
      void* memory = mmap(nullptr, usable_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + usable_, page, PROT_NONE))
        throw std::runtime_error("no memory");
      spare.push_back(static_cast<char*>(memory));
    }
    start_ = spare.back();
    spare.pop_back();
    std::memset(data(), 0x5a, bytes_);
  }
  ~Guarded() { spares()[usable_].push_back(start_); }
  Guarded(const Guarded&) = delete;
  operator T*() { return data(); }
  T* data() { return reinterpret_cast<T*>(start_ + usable_ - bytes_); }
  long bytes() const { return bytes_; }

 private:
  static std::map<long, std::vector<char*>>& spares() {
    static std::map<long, std::vector<char*>> all;
    return all;
  }
  long bytes_, usable_;
  char* start_;
};

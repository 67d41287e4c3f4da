// Vectors of any width, for code that one source gives to several instruction sets.
//
// Vectors wider than the processor's registers are passed only to functions that are inlined, into one whose attribute
// names the instruction set. A cast between vector types of one size keeps the bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "rounding.h"
#include "ternary.h"

#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINE __attribute__((always_inline)) inline

namespace frankenlm {

constexpr float kRoundToEven = 12582912.0f;  // 1.5 * 2^23: added and taken away, it leaves an integer, ties to even

template <class T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <class T, int Lanes>
using Vector = typename VectorOf<T, Lanes>::type;

template <int Lanes>
INLINE Vector<float, Lanes> widen(const Vector<float, Lanes>& x) {
  return x;
}
// bfloat16 is the upper half of a float
template <int Lanes>
INLINE Vector<float, Lanes> widen(const Vector<uint16_t, Lanes>& bfloats) {
  return (Vector<float, Lanes>)(__builtin_convertvector(bfloats, Vector<uint32_t, Lanes>) << 16);
}

template <int Lanes>
INLINE void narrow(const Vector<float, Lanes>& x, Vector<float, Lanes>& out) {
  out = x;
}
template <int Lanes>
INLINE void narrow(const Vector<float, Lanes>& x, Vector<uint16_t, Lanes>& out) {
  using Words = Vector<uint32_t, Lanes>;
  const Words bits = (Words)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = (Words)(x != x);
  out = __builtin_convertvector((nan & kBfloat16Nan) | (~nan & rounded), Vector<uint16_t, Lanes>);
}

// `count` values from `from` on, float or bfloat16, zeros behind them.
template <int Lanes, class T>
INLINE Vector<float, Lanes> load(const T* from, long count = Lanes) {
  Vector<T, Lanes> raw = {};
  std::memcpy(&raw, from, count == Lanes ? sizeof(raw) : count * sizeof(T));
  return widen<Lanes>(raw);
}

template <int Lanes, class T>
INLINE void store(const Vector<float, Lanes>& x, T* to, long count = Lanes) {
  Vector<T, Lanes> raw;
  narrow<Lanes>(x, raw);
  std::memcpy(to, &raw, count == Lanes ? sizeof(raw) : count * sizeof(T));
}

// Calls call(Set{}) with the set of functions whose registers the path in use has.
template <class Plain, class Avx2, class Avx512, class Call>
void with_registers(const Call& call) {
#if defined(__x86_64__)
  const Path* path = &chosen_path();
  if (path == &kAvx512Vnni) return call(Avx512{});
  if (path == &kAvxVnni || path == &kAvx2) return call(Avx2{});
#endif
  call(Plain{});
}

[[noreturn]] inline void fail(const std::string& text) { throw std::runtime_error("frankenlm::" + text); }

}  // namespace frankenlm

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

// The sum of a register's lanes.
template <int Lanes>
INLINE float total(const Vector<float, Lanes>& v) {
  if constexpr (Lanes == 1) {
    return v[0];
  } else {
    Vector<float, Lanes / 2> low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return total<Lanes / 2>(low + high);
  }
}

// e^x, relative error below 2e-7: x = n ln 2 + r, and a polynomial for e^r (Cephes' expf). What would leave float32's
// normal numbers is held at e^-87 and e^88.
template <int Lanes>
INLINE Vector<float, Lanes> exponential(Vector<float, Lanes> x) {
  using Floats = Vector<float, Lanes>;
  using Words = Vector<int32_t, Lanes>;
  const Floats lowest = Floats{} - 87.0f, highest = Floats{} + 88.0f;
  x = x < lowest ? lowest : x;  // in this order NaN stays NaN
  x = x > highest ? highest : x;
  const Floats shift = Floats{} + kRoundToEven;  // the low bits then hold the integer
  const Floats shifted = x * 1.44269504f + shift, n = shifted - shift;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return (Floats)((Words)p + (((Words)shifted - (Words)shift) << 23));
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

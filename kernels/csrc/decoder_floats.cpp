// The float arithmetic of a decoding step for each width of register: norms, rotation, gates, attention.
#include "decoder.h"

#include <cmath>
#include <limits>

#include "vectors.h"

namespace frankenlm {
namespace {

// x rounded to the format T.
template <int Lanes, class T>
INLINE Vector<float, Lanes> rounded(const Vector<float, Lanes>& x) {
  Vector<T, Lanes> raw;
  narrow<Lanes>(x, raw);
  return widen<Lanes>(raw);
}

// Calls step(k, count) for the registers that cover `total` elements; only the last may be part full.
template <int Lanes, class Step>
INLINE void each(long total, const Step& step) {
  long k = 0;
  for (; k + Lanes <= total; k += Lanes) step(k, static_cast<long>(Lanes));
  if (k < total) step(k, total - k);
}

template <int Lanes, class T>
INLINE void widen_all(const T* from, long count, float* to) {
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) { store<Lanes>(load<Lanes>(from + k, n), to + k, n); });
}

template <int Lanes, class T>
INLINE void narrow_all(const float* from, long count, T* to) {
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) { store<Lanes>(load<Lanes>(from + k, n), to + k, n); });
}

template <int Lanes, class T>
INLINE void round_all(float* x, long count) {
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) {
    store<Lanes>(rounded<Lanes, T>(load<Lanes>(x + k, n)), x + k, n);
  });
}

// The squares are summed in double: rounded to float, the mean then hardly depends on the order of the additions.
template <int Lanes, class T>
INLINE void normalise(const float* x, const T* gain, long count, float eps, float* out) {
  using Doubles = Vector<double, Lanes>;
  Doubles squares = {};
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) {
    const Doubles wide = __builtin_convertvector(load<Lanes>(x + k, n), Doubles);
    squares += wide * wide;
  });
  double sum = 0.0;
  for (int i = 0; i < Lanes; ++i) sum += squares[i];
  const float factor = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(count)) + eps);
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) {
    const auto unit = rounded<Lanes, T>(load<Lanes>(x + k, n) * factor);
    store<Lanes>(rounded<Lanes, T>(load<Lanes>(gain + k, n) * unit), out + k, n);
  });
}

// The halves of a head turned by the angles of the tables: x cos + (-second, first) sin.
template <int Lanes, class T>
INLINE void turn_head(float* head, const T* cosines, const T* sines, long width) {
  const long half = width / 2;
  each<Lanes>(half, [&](long k, long n) __attribute__((always_inline)) {
    const auto a = load<Lanes>(head + k, n), b = load<Lanes>(head + half + k, n);
    const auto left = rounded<Lanes, T>(a * load<Lanes>(cosines + k, n)) -
                      rounded<Lanes, T>(b * load<Lanes>(sines + k, n));
    const auto right = rounded<Lanes, T>(b * load<Lanes>(cosines + half + k, n)) +
                       rounded<Lanes, T>(a * load<Lanes>(sines + half + k, n));
    store<Lanes>(rounded<Lanes, T>(left), head + k, n);
    store<Lanes>(rounded<Lanes, T>(right), head + half + k, n);
  });
}

template <int Lanes, class T>
INLINE void add_all(float* stream, float* y, long count) {
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) {
    const auto sum = load<Lanes>(stream + k, n) + rounded<Lanes, T>(load<Lanes>(y + k, n));
    store<Lanes>(rounded<Lanes, T>(sum), stream + k, n);
  });
}

template <int Lanes, class T>
INLINE void gate_all(Activation activation, const float* gate, const float* up, long count, float* out) {
  using Floats = Vector<float, Lanes>;
  each<Lanes>(count, [&](long k, long n) __attribute__((always_inline)) {
    Floats x = rounded<Lanes, T>(load<Lanes>(gate + k, n));
    if (activation == Activation::silu) {
      x = x / (1.0f + exponential<Lanes>(-x));
    } else {
      x = x < Floats{} ? Floats{} : x;  // in this order NaN stays NaN
      x = x * x;
    }
    store<Lanes>(rounded<Lanes, T>(rounded<Lanes, T>(x) * rounded<Lanes, T>(load<Lanes>(up + k, n))), out + k, n);
  });
}

// Scores of Count queries against two columns at once: each register of keys meets every query.
template <int Lanes, int Count, class T>
INLINE void score_rows(const Queries<T>& q, const float* query, const T* const (&rows)[2], float (&scores)[2][Count]) {
  Vector<float, Lanes> sum[2][Count] = {};
  each<Lanes>(q.width, [&](long k, long n) __attribute__((always_inline)) {
    const Vector<float, Lanes> first = load<Lanes>(rows[0] + k, n), second = load<Lanes>(rows[1] + k, n);
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) {
      const auto part = load<Lanes>(query + i * q.width + k, n);
      sum[0][i] += part * first;
      sum[1][i] += part * second;
    }
  });
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < Count; ++i) scores[r][i] = total<Lanes>(sum[r][i]) * q.scale;
}

// The weighted values of Count queries, the columns from k on that `Wide` registers hold (`n` elements where it is one).
template <int Lanes, int Count, int Wide, class T>
INLINE void weigh(const Queries<T>& q, const float* weights, long stride, const float* factor, long k, long n,
                  float* out) {
  Vector<float, Lanes> sum[Count][Wide] = {};
  long seen = 0;
  for (long r = 0; r < q.run_count; ++r) {
    for (long t = q.runs[r].first; t < q.runs[r].last; ++t, ++seen) {
      const T* value = q.values + t * q.width + k;
      __builtin_prefetch(value + 16 * q.width);
#pragma GCC unroll 4
      for (int w = 0; w < Wide; ++w) {
        const auto part = load<Lanes>(value + w * Lanes, n);
#pragma GCC unroll 4
        for (int i = 0; i < Count; ++i) sum[i][w] += part * weights[i * stride + seen];
      }
    }
  }
  for (int i = 0; i < Count; ++i)
    for (int w = 0; w < Wide; ++w)
      store<Lanes>(rounded<Lanes, T>(sum[i][w] * factor[i]), out + i * q.width + k + w * Lanes, n);
}

// e^(score - largest) in place, zeros behind them; returns 1 / their sum, or 0 where there are none.
template <int Lanes>
INLINE float soften(float* scores, float largest, long columns) {
  Vector<float, Lanes> sums = {};
  each<Lanes>(columns, [&](long t, long n) __attribute__((always_inline)) {
    store<Lanes>(exponential<Lanes>(load<Lanes>(scores + t, n) - largest), scores + t, n);
    sums += load<Lanes>(scores + t, n);
  });
  const float sum = total<Lanes>(sums);
  return sum > 0.0f ? 1.0f / sum : 0.0f;
}

template <int Lanes, int Count, class T>
INLINE void attend_some(const Queries<T>& q, const float* query, float* scores, float* out) {
  constexpr int kWide = Lanes >= 16 ? 4 : Count > 2 ? 2 : 4;  // sums stay in 16 registers of 512 bits, 8 of 256
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const long stride = score_stride(q.columns);
  float largest[Count], factor[Count];
  bool finite[Count];
  for (int i = 0; i < Count; ++i) largest[i] = -kInfinity, finite[i] = true;
  long seen = 0;
  for (long r = 0; r < q.run_count; ++r) {
    for (long t = q.runs[r].first; t < q.runs[r].last; t += 2) {
      const bool pair = t + 1 < q.runs[r].last;
      const T* const rows[2] = {q.keys + t * q.width, q.keys + (pair ? t + 1 : t) * q.width};
      __builtin_prefetch(rows[0] + 16 * q.width);
      __builtin_prefetch(rows[1] + 16 * q.width);
      float found[2][Count];
      score_rows<Lanes, Count>(q, query, rows, found);
      for (int c = 0; c < (pair ? 2 : 1); ++c, ++seen)
        for (int i = 0; i < Count; ++i) {
          scores[i * stride + seen] = found[c][i];
          largest[i] = found[c][i] > largest[i] ? found[c][i] : largest[i];
          finite[i] = finite[i] && found[c][i] < kInfinity;  // a NaN would lose every comparison, and be passed over
        }
    }
  }
  for (int i = 0; i < Count; ++i)
    factor[i] = finite[i] ? soften<Lanes>(scores + i * stride, largest[i], q.columns) : NAN;
  long k = 0;
  for (; k + kWide * Lanes <= q.width; k += kWide * Lanes)
    weigh<Lanes, Count, kWide>(q, scores, stride, factor, k, Lanes, out);
  for (; k < q.width; k += Lanes)
    weigh<Lanes, Count, 1>(q, scores, stride, factor, k, q.width - k < Lanes ? q.width - k : Lanes, out);
}

template <int Lanes, class T>
INLINE void attend_all(const Queries<T>& q, float* scores, float* out) {
  long i = 0;
  for (; i + 4 <= q.count; i += 4) attend_some<Lanes, 4>(q, q.query + i * q.width, scores, out + i * q.width);
  for (; i + 2 <= q.count; i += 2) attend_some<Lanes, 2>(q, q.query + i * q.width, scores, out + i * q.width);
  if (i < q.count) attend_some<Lanes, 1>(q, q.query + i * q.width, scores, out + i * q.width);
}

#define FUNCTIONS(NAME, LANES, TARGET)                                                                               \
  template <class T>                                                                                                 \
  struct NAME {                                                                                                      \
    TARGET static void widen(const T* x, long n, float* y) { widen_all<LANES>(x, n, y); }                             \
    TARGET static void narrow(const float* x, long n, T* y) { narrow_all<LANES>(x, n, y); }                           \
    TARGET static void round(float* x, long n) { round_all<LANES, T>(x, n); }                                         \
    TARGET static void norm(const float* x, const T* g, long n, float e, float* y) { normalise<LANES>(x, g, n, e, y); } \
    TARGET static void turn(float* x, const T* c, const T* s, long n) { turn_head<LANES>(x, c, s, n); }               \
    TARGET static void add(float* x, float* y, long n) { add_all<LANES, T>(x, y, n); }                                \
    TARGET static void gate(Activation a, const float* g, const float* u, long n, float* y) {                         \
      gate_all<LANES, T>(a, g, u, n, y);                                                                              \
    }                                                                                                                \
    TARGET static void attend(const Queries<T>& q, float* s, float* y) { attend_all<LANES>(q, s, y); }                \
    static constexpr DecoderFloats<T> table{widen, narrow, round, norm, turn, add, gate, attend};                     \
  };
FUNCTIONS(Plain, 4, )
#if defined(__x86_64__)
FUNCTIONS(Avx2, 8, __attribute__((target("avx2"))))
FUNCTIONS(Avx512, 16, __attribute__((target("avx512f,avx512bw,avx512dq"))))
#else
template <class T> using Avx2 = Plain<T>;
template <class T> using Avx512 = Plain<T>;
#endif
#undef FUNCTIONS

}  // namespace

template <class T>
const DecoderFloats<T>& decoder_floats() {
  const DecoderFloats<T>* found = nullptr;
  with_registers<Plain<T>, Avx2<T>, Avx512<T>>([&](auto set) { found = &decltype(set)::table; });
  return *found;
}

template const DecoderFloats<float>& decoder_floats<float>();
template const DecoderFloats<uint16_t>& decoder_floats<uint16_t>();

}  // namespace frankenlm

// What a decoding step needs besides its linear layers, for one token at a time: attention of one query over the keys
// kept so far, rotary positions, RMS normalisation. torch composes both from kernels made for many tokens.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace frankenlm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr long kElementsPerTask = 65536;  // of keys and values

INLINE float one(const float* from) { return *from; }
INLINE float one(const uint16_t* from) { return from_bfloat16(*from); }

// Keys and values come from memory, once a token: rows are asked for this many rows ahead. Behind a head's keys come
// its values, behind those the next head's keys.
constexpr long kAhead = 24;

template <class T>
struct Rows {
  const T* first;
  long stride;
};

template <class T>
INLINE void fetch_ahead(Rows<T> rows, Rows<T> after, long row, long length, long width) {
  const long ahead = row + kAhead;
  const T* wanted = ahead < length ? rows.first + ahead * rows.stride : after.first + (ahead - length) * after.stride;
  for (long k = 0; k < width; k += 64 / static_cast<long>(sizeof(T))) __builtin_prefetch(wanted + k);
}

template <class T>
struct Head {
  const T* query;                  // [K]
  Rows<T> keys, values, next_keys;  // [T][K]; the last of the head that follows
  const bool* visible;             // [T] or null
  long length, width;
  float scale;
};

// factor * weights V, the columns from k on that Count registers hold.
template <int Lanes, int Count, class T>
INLINE void weigh(const Head<T>& h, const float* weights, long k, float factor, float* out) {
  Vector<float, Lanes> sum[Count] = {};
  for (long t = 0; t < h.length; ++t) {
    if (h.visible && !h.visible[t]) continue;
    const T* value = h.values.first + t * h.values.stride + k;
    fetch_ahead(h.values, h.next_keys, t, h.length, Lanes * Count);
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) sum[i] += load<Lanes>(value + i * Lanes) * weights[t];
  }
  for (int i = 0; i < Count; ++i) {
    sum[i] *= factor;
    store<Lanes>(sum[i], out + k + i * Lanes);
  }
}

// softmax(scale q K^T) V of one head; `scores` has room for `length` and a vector more, `out` for `width`.
template <int Lanes, class T>
INLINE void attend(const Head<T>& h, float* scores, float* out) {
  using Floats = Vector<float, Lanes>;
  const long whole = h.width / Lanes * Lanes;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float largest = -kInfinity;
  bool finite = true;
  for (long t = 0; t < h.length; ++t) {
    if (h.visible && !h.visible[t]) continue;
    const T* key = h.keys.first + t * h.keys.stride;
    fetch_ahead(h.keys, h.values, t, h.length, h.width);
    Floats sum = {};
    for (long k = 0; k < whole; k += Lanes) sum += load<Lanes>(h.query + k) * load<Lanes>(key + k);
    float score = total<Lanes>(sum);
    for (long k = whole; k < h.width; ++k) score += one(h.query + k) * one(key + k);
    scores[t] = score * h.scale;
    largest = scores[t] > largest ? scores[t] : largest;
    finite = finite && scores[t] < kInfinity;
  }
  if (!finite) {  // a NaN among scores would lose every comparison, and be passed over
    for (long k = 0; k < h.width; ++k) out[k] = NAN;
    return;
  }
  for (long t = 0; t < h.length; t += Lanes) {
    store<Lanes>(exponential<Lanes>(load<Lanes>(scores + t) - largest), scores + t);
  }
  float sum = 0.0f;
  for (long t = 0; t < h.length; ++t)
    if (!h.visible || h.visible[t]) sum += scores[t];
  const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;  // a query that sees no key gives zeros
  long k = 0;
  for (; k + 4 * Lanes <= h.width; k += 4 * Lanes) weigh<Lanes, 4>(h, scores, k, factor, out);
  for (; k + Lanes <= h.width; k += Lanes) weigh<Lanes, 1>(h, scores, k, factor, out);
  for (; k < h.width; ++k) weigh<1, 1>(h, scores, k, factor, out);
}

template <int Lanes>
INLINE void normalise(const float* x, const float* weight, long width, float eps, float* out) {
  using Floats = Vector<float, Lanes>;
  const long whole = width / Lanes * Lanes;
  Floats squares = {};
  for (long k = 0; k < whole; k += Lanes) squares += load<Lanes>(x + k) * load<Lanes>(x + k);
  float sum = total<Lanes>(squares);
  for (long k = whole; k < width; ++k) sum += x[k] * x[k];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  for (long k = 0; k < whole; k += Lanes) {
    store<Lanes>(load<Lanes>(x + k) * factor * load<Lanes>(weight + k), out + k);
  }
  for (long k = whole; k < width; ++k) out[k] = x[k] * factor * weight[k];
}

// Turns the halves of one head by the angles of the tables, whose sines hold the sign (modeling/positions.py).
INLINE void turn(const float* x, const float* cos, const float* sin, long width, float* out) {
  const long half = width / 2;
  for (long k = 0; k < half; ++k) out[k] = x[k] * cos[k] + x[k + half] * sin[k];
  for (long k = half; k < width; ++k) out[k] = x[k] * cos[k] + x[k - half] * sin[k];
}

// One set of functions for each width of register.
#define FUNCTIONS(NAME, LANES, TARGET)                                                                         \
  struct NAME {                                                                                                \
    TARGET static void head(const Head<float>& h, float* s, float* out) { attend<LANES>(h, s, out); }           \
    TARGET static void head(const Head<uint16_t>& h, float* s, float* out) { attend<LANES>(h, s, out); }        \
    TARGET static void norm(const float* x, const float* w, long n, float e, float* y) { normalise<LANES>(x, w, n, e, y); } \
  };
FUNCTIONS(Plain, 4, )
#if defined(__x86_64__)
FUNCTIONS(Avx2, 8, __attribute__((target("avx2"))))
FUNCTIONS(Avx512, 16, __attribute__((target("avx512f,avx512bw,avx512dq"))))
#else
using Avx2 = Plain;
using Avx512 = Plain;
#endif
#undef FUNCTIONS

void to_result(const float* from, long count, float* to) { std::memcpy(to, from, count * sizeof(float)); }
void to_result(const float* from, long count, uint16_t* to) {
  for (long i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

template <class T>
void attend_all(const Tensor& query, const Tensor& keys, const Tensor& values, const bool* visible, long visible_rows,
                float scale, Tensor& out) {
  const long batch = query.size(0), heads = query.size(1), width = query.size(3), length = keys.size(2);
  const auto* q = static_cast<const T*>(query.data_ptr());
  const auto* k = static_cast<const T*>(keys.data_ptr());
  const auto* v = static_cast<const T*>(values.data_ptr());
  auto* y = static_cast<T*>(out.data_ptr());
  const long qb = query.stride(0), qh = query.stride(1), kb = keys.stride(0), kh = keys.stride(1), kt = keys.stride(2);
  const long vb = values.stride(0), vh = values.stride(1), vt = values.stride(2);
  const long grain = std::max(1L, kElementsPerTask / std::max(1L, 2 * length * width));
  parallel_for(false, 0, batch * heads, grain, [&](long begin, long end) {
    thread_local std::vector<float> scratch;
    scratch.assign(length + 16 + width, 0.0f);
    for (long i = begin; i < end; ++i) {
      const long b = i / heads, h = i % heads;
      const bool* row = visible ? visible + (visible_rows == 1 ? 0 : b * length) : nullptr;
      const long next = i + 1 < end ? i + 1 : i;
      const Head<T> head{q + b * qb + h * qh,
                         {k + b * kb + h * kh, kt},
                         {v + b * vb + h * vh, vt},
                         {k + next / heads * kb + next % heads * kh, kt},
                         row,
                         length,
                         width,
                         scale};
      float* result = scratch.data() + length + 16;
      with_registers<Plain, Avx2, Avx512>([&](auto set) { decltype(set)::head(head, scratch.data(), result); });
      to_result(result, width, y + i * width);
    }
  });
}

Tensor attend_step(const Tensor& query, const Tensor& keys, const Tensor& values, const std::optional<Tensor>& visible,
                   double scale) {
  const ScalarType type = query.scalar_type();
  if (query.dim() != 4 || keys.dim() != 4 || values.dim() != 4 || query.size(2) != 1)
    fail("attend_step: query must be (B, H, 1, K), keys and values (B, H, T, K)");
  for (const Tensor* past : {&keys, &values})
    if (past->size(0) != query.size(0) || past->size(1) != query.size(1) || past->size(3) != query.size(3) ||
        past->size(2) != keys.size(2) || past->scalar_type() != type)
      fail("attend_step: query, keys and values differ in batch, heads, width, length or dtype");
  if (type != ScalarType::Float && type != ScalarType::BFloat16) fail("attend_step: float32 or bfloat16 only");
  const auto last_dense = [](const Tensor& x) { return x.stride(3) == 1 || x.size(3) == 1; };
  const Tensor q = last_dense(query) ? query : torch::stable::contiguous(query);
  const Tensor k = last_dense(keys) ? keys : torch::stable::contiguous(keys);
  const Tensor v = last_dense(values) ? values : torch::stable::contiguous(values);
  std::optional<Tensor> mask;
  if (visible) {
    if (visible->scalar_type() != ScalarType::Bool || visible->dim() != 4 || visible->size(1) != 1 ||
        visible->size(2) != 1 || visible->size(3) != keys.size(2) ||
        (visible->size(0) != 1 && visible->size(0) != query.size(0)))
      fail("attend_step: visible must be bool of shape (B or 1, 1, 1, T)");
    mask = torch::stable::contiguous(*visible);
  }
  const bool* seen = mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), 1, q.size(3)}, type);
  const long rows = mask ? mask->size(0) : 1;
  if (type == ScalarType::Float)
    attend_all<float>(q, k, v, seen, rows, static_cast<float>(scale), out);
  else
    attend_all<uint16_t>(q, k, v, seen, rows, static_cast<float>(scale), out);
  return out;
}

Tensor rotate_step(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  if (x.scalar_type() != ScalarType::Float || x.dim() != 4 || x.size(2) != 1 || x.size(3) % 2)
    fail("rotate_step: x must be float32 (B, H, 1, K), K even");
  for (const Tensor* table : {&cos, &sin})
    if (table->scalar_type() != ScalarType::Float || table->dim() != 4 || table->size(1) != 1 || table->size(2) != 1 ||
        table->size(3) != x.size(3) || (table->size(0) != 1 && table->size(0) != x.size(0)))
      fail("rotate_step: cos and sin must be float32 (B or 1, 1, 1, K)");
  const Tensor plain = x.stride(3) == 1 ? x : torch::stable::contiguous(x);
  const Tensor cosines = torch::stable::contiguous(cos), sines = torch::stable::contiguous(sin);
  const long batch = x.size(0), heads = x.size(1), width = x.size(3);
  Tensor out = torch::stable::new_empty(plain, {batch, heads, 1, width}, ScalarType::Float);
  const auto* from = static_cast<const float*>(plain.data_ptr());
  const auto* c = static_cast<const float*>(cosines.data_ptr());
  const auto* s = static_cast<const float*>(sines.data_ptr());
  auto* to = static_cast<float*>(out.data_ptr());
  const long table_stride = cosines.size(0) == 1 ? 0 : width, b_stride = plain.stride(0), h_stride = plain.stride(1);
  for (long b = 0; b < batch; ++b)
    for (long h = 0; h < heads; ++h)
      turn(from + b * b_stride + h * h_stride, c + b * table_stride, s + b * table_stride, width,
           to + (b * heads + h) * width);
  return out;
}

Tensor rms_norm_step(const Tensor& x, const Tensor& weight, double eps) {
  if (x.scalar_type() != ScalarType::Float || weight.scalar_type() != ScalarType::Float || x.dim() < 1 ||
      weight.dim() != 1 || weight.size(0) != x.size(x.dim() - 1))
    fail("rms_norm: x must be float32 (..., K), weight float32 (K,)");
  const Tensor plain = torch::stable::contiguous(x), scale = torch::stable::contiguous(weight);
  Tensor out = torch::stable::empty_like(plain);
  const long width = weight.size(0), rows = width ? plain.numel() / width : 0;
  const auto* from = static_cast<const float*>(plain.data_ptr());
  const auto* gain = static_cast<const float*>(scale.data_ptr());
  auto* to = static_cast<float*>(out.data_ptr());
  const float epsilon = static_cast<float>(eps);
  parallel_for(false, 0, rows, std::max(1L, kElementsPerTask / std::max(1L, width)), [&](long begin, long end) {
    with_registers<Plain, Avx2, Avx512>([&](auto set) {
      for (long i = begin; i < end; ++i) decltype(set)::norm(from + i * width, gain, width, epsilon, to + i * width);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(frankenlm, m) {
  m.def("attend_step(Tensor query, Tensor keys, Tensor values, Tensor? visible, float scale) -> Tensor");
  m.def("rotate_step(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(frankenlm, CPU, m) {
  m.impl("attend_step", TORCH_BOX(&attend_step));
  m.impl("rotate_step", TORCH_BOX(&rotate_step));
  m.impl("rms_norm", TORCH_BOX(&rms_norm_step));
}

}  // namespace frankenlm

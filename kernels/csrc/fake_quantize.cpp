// Rounding of activations for training, forward and backward: one pass over each token while it is in the first cache.
//
// modeling/fake_quantize.py says what is computed. The forward pass equals it to the last bit: every float operation
// is single and correctly rounded, and the one sum runs in double, where its order does not matter after rounding.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace frankenlm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr long kElementsPerTask = 32768;

// Calls body(k, count) for all of [0, length): full vectors, with a count the compiler knows, then the rest.
template <int Lanes, class Body>
INLINE void by_vectors(long length, const Body& body) {
  long k = 0;
  for (; k + Lanes <= length; k += Lanes) body(k, Lanes);
  if (k < length) body(k, length - k);
}

// Vectors of one instruction set: `sums` doubles and `lanes` floats fill a register.
template <int Sums, int Lanes>
struct Registers {
  static constexpr int sums = Sums, lanes = Lanes;
};

struct Rule {
  float top;       // the largest level, 127 for 8 bits
  float norm_eps;  // above 0: the token is normalised first
};

// Rounds one token; returns the factor that normalised it, 1 without normalisation.
template <class Set, class In, class Out>
INLINE float round_token(const In* x, long inputs, Rule rule, Out* out) {
  Vector<int32_t, Set::sums> magnitudes = {};
  Vector<double, Set::sums> squares = {};
  by_vectors<Set::sums>(inputs, [&](long k, long count) __attribute__((always_inline)) {
    const auto value = load<Set::sums>(x + k, count);
    const auto bits = (Vector<int32_t, Set::sums>)value & 0x7fffffff;
    magnitudes = bits > magnitudes ? bits : magnitudes;
    const auto wide = __builtin_convertvector(value, Vector<double, Set::sums>);
    squares += wide * wide;
  });
  int32_t largest = 0;
  double sum = 0;
  for (int i = 0; i < Set::sums; ++i) {
    largest = std::max<int32_t>(largest, magnitudes[i]);
    sum += squares[i];
  }
  float magnitude = bits_as<float>(largest), factor = 1.0f;
  if (rule.norm_eps > 0) {
    factor = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(inputs)) + rule.norm_eps);
    magnitude *= factor;
  }
  // The reciprocal first, as torch divides a number by a tensor. NaN fails the comparison and stays.
  const float levels = (1.0f / (magnitude < kScaleFloor ? kScaleFloor : magnitude)) * rule.top;
  by_vectors<Set::lanes>(inputs, [&](long k, long count) __attribute__((always_inline)) {
    const auto scaled = load<Set::lanes>(x + k, count) * factor * levels;
    store<Set::lanes>(((scaled + kRoundToEven) - kRoundToEven) / levels, out + k, count);
  });
  return factor;
}

// The gradient towards x of x * factor(x), factor = 1 / sqrt(mean(x^2) + eps).
template <class Set, class Gradient, class In>
INLINE void normalization_gradient(const Gradient* gradient, const In* x, long inputs, float factor, In* out) {
  using Doubles = Vector<double, Set::sums>;
  Doubles products = {};
  by_vectors<Set::sums>(inputs, [&](long k, long count) __attribute__((always_inline)) {
    products += __builtin_convertvector(load<Set::sums>(gradient + k, count), Doubles) *
                __builtin_convertvector(load<Set::sums>(x + k, count), Doubles);
  });
  double dot = 0;
  for (int i = 0; i < Set::sums; ++i) dot += products[i];
  const float shared = static_cast<float>(dot / static_cast<double>(inputs)) * (factor * factor * factor);
  by_vectors<Set::lanes>(inputs, [&](long k, long count) __attribute__((always_inline)) {
    store<Set::lanes>(load<Set::lanes>(gradient + k, count) * factor - load<Set::lanes>(x + k, count) * shared, out + k,
                      count);
  });
}

template <class Set, class In, class Out>
INLINE void round_tokens(const In* x, long begin, long end, long inputs, Rule rule, Out* out, float* factor) {
  for (long m = begin; m < end; ++m) factor[m] = round_token<Set>(x + m * inputs, inputs, rule, out + m * inputs);
}

template <class Set, class Gradient, class In>
INLINE void gradients(const Gradient* gradient, const In* x, long begin, long end, long inputs, const float* factor,
                      In* out) {
  for (long m = begin; m < end; ++m)
    normalization_gradient<Set>(gradient + m * inputs, x + m * inputs, inputs, factor[m], out + m * inputs);
}

// The same code for three sets of instructions.
#define VARIANT(name, sums, lanes, ...)                        \
  struct name {                                                \
    template <class... Arguments>                              \
    __VA_ARGS__ static void forward(Arguments... arguments) {  \
      round_tokens<Registers<sums, lanes>>(arguments...);      \
    }                                                          \
    template <class... Arguments>                              \
    __VA_ARGS__ static void backward(Arguments... arguments) { \
      gradients<Registers<sums, lanes>>(arguments...);         \
    }                                                          \
  };
VARIANT(Plain, 8, 8, )
#if defined(__x86_64__)
VARIANT(Avx2, 4, 8, __attribute__((target("avx2,fma"))))
VARIANT(Avx512, 8, 16, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))))
#else
using Avx2 = Plain;
using Avx512 = Plain;
#endif

// Calls call(pointer) with the tensor's data in its own type.
template <class Call>
void with_pointer(const Tensor& tensor, const char* what, const Call& call) {
  if (tensor.scalar_type() == ScalarType::Float) return call(static_cast<float*>(tensor.data_ptr()));
  if (tensor.scalar_type() == ScalarType::BFloat16) return call(static_cast<uint16_t*>(tensor.data_ptr()));
  fail(std::string("fake_quantize_activations: ") + what + " must be float32 or bfloat16");
}

struct Extent {
  std::vector<int64_t> leading;
  long tokens = 1, inputs = 0;
};

Extent extent_of(const Tensor& x) {
  if (x.dim() < 1) fail("fake_quantize_activations: x must have at least one dimension, (..., K)");
  const auto sizes = x.sizes();
  Extent extent{{sizes.begin(), sizes.end()}};
  extent.inputs = extent.leading.back();
  extent.leading.pop_back();
  for (const int64_t size : extent.leading) extent.tokens *= size;
  return extent;
}

template <class Body>
void over_tokens(const Extent& extent, const Body& body) {
  const long grain = std::max(1L, kElementsPerTask / std::max(extent.inputs, 1L));
  parallel_for(false, 0, extent.tokens, grain, body);
}

std::tuple<Tensor, Tensor> fake_quantize_activations(const Tensor& x, int64_t bits, double norm_eps,
                                                     std::optional<ScalarType> dtype) {
  if (bits < 2 || bits > 16) fail("fake_quantize_activations: bits must lie in 2..16");
  const Extent extent = extent_of(x);
  const Tensor plain = torch::stable::contiguous(x);
  const auto sizes = x.sizes();
  Tensor out = torch::stable::new_empty(x, sizes, dtype.value_or(x.scalar_type()));
  Tensor factor = torch::stable::new_empty(x, extent.leading, ScalarType::Float);
  auto* factors = static_cast<float*>(factor.data_ptr());
  const Rule rule{static_cast<float>((1 << (bits - 1)) - 1), static_cast<float>(norm_eps)};
  with_pointer(plain, "x", [&](const auto* from) {
    with_pointer(out, "dtype", [&](auto* to) {
      with_registers<Plain, Avx2, Avx512>([&](auto variant) {
        over_tokens(extent, [&](long begin, long end) {
          decltype(variant)::forward(from, begin, end, extent.inputs, rule, to, factors);
        });
      });
    });
  });
  return {out, factor};
}

Tensor fake_quantize_activations_backward(const Tensor& gradient, const Tensor& x, const Tensor& factor) {
  const Extent extent = extent_of(x);
  const auto sizes = x.sizes(), gradient_sizes = gradient.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), gradient_sizes.begin(), gradient_sizes.end()))
    fail("fake_quantize_activations_backward: gradient and x must have the same shape");
  if (factor.scalar_type() != ScalarType::Float || factor.numel() != extent.tokens)
    fail("fake_quantize_activations_backward: factor must be float32 with one value per token");
  const Tensor plain = torch::stable::contiguous(x), plain_gradient = torch::stable::contiguous(gradient);
  const Tensor plain_factor = torch::stable::contiguous(factor);
  const auto* factors = static_cast<const float*>(plain_factor.data_ptr());
  Tensor out = torch::stable::new_empty(x, sizes, x.scalar_type());
  with_pointer(plain_gradient, "gradient", [&](const auto* towards) {
    with_pointer(plain, "x", [&](const auto* from) {
      auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(out.data_ptr());
      with_registers<Plain, Avx2, Avx512>([&](auto variant) {
        over_tokens(extent, [&](long begin, long end) {
          decltype(variant)::backward(towards, from, begin, end, extent.inputs, factors, to);
        });
      });
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(frankenlm, m) {
  m.def(
      "fake_quantize_activations(Tensor x, int bits=8, float norm_eps=-1, ScalarType? dtype=None) "
      "-> (Tensor rounded, Tensor factor)");
  m.def("fake_quantize_activations_backward(Tensor gradient, Tensor x, Tensor factor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(frankenlm, CPU, m) {
  m.impl("fake_quantize_activations", TORCH_BOX(&fake_quantize_activations));
  m.impl("fake_quantize_activations_backward", TORCH_BOX(&fake_quantize_activations_backward));
}

}  // namespace frankenlm

// The operators as torch sees them: schemas, checks of what is handed in, memory for what is handed out.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "ternary.h"

// A build that is published has a namespace of its own; see hub.py.
#ifndef FRANKENLM_NAMESPACE
#define FRANKENLM_NAMESPACE frankenlm
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace frankenlm {
namespace {

[[noreturn]] void fail(const std::string& op, const std::string& text) {
  throw std::runtime_error("frankenlm::" + op + ": " + text);
}

void require(bool condition, const char* op, const char* text) {
  if (!condition) fail(op, text);
}

Dtype dtype_of(ScalarType type, const char* op) {
  switch (type) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default: fail(op, "activations must be float32, bfloat16 or float16");
  }
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes[i] > 0 ? sizes[i] : 1) strides[i] = step;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), static_cast<int32_t>(type),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

std::string text_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + ")";
}

// A weight's scale or bias: one float32 per output row.
Tensor per_row(const Tensor& tensor, int64_t rows, const char* op, const char* what) {
  if (tensor.scalar_type() != ScalarType::Float || tensor.dim() != 1 || tensor.size(0) != rows)
    fail(op, std::string(what) + " must be float32 of shape (" + std::to_string(rows) + ",), one value per output row");
  return dense(tensor);
}

std::optional<Tensor> bias_of(const std::optional<Tensor>& bias, int64_t rows, const char* op) {
  if (!bias) return std::nullopt;
  return per_row(*bias, rows, op, "bias");
}

// Memory that a weight points into, for as long as it is used.
struct Kept {
  Tensor tiles, scale;
  std::optional<Tensor> bias;
};

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }

struct Shape {
  std::vector<int64_t> leading;
  long tokens = 1, inputs = 0;
};

Shape shape_of(const Tensor& x, const char* op) {
  require(x.dim() >= 1, op, "activations must have at least one dimension, (..., K)");
  Shape shape{sizes_of(x)};
  shape.inputs = shape.leading.back();
  shape.leading.pop_back();
  for (int64_t size : shape.leading) shape.tokens *= size;
  return shape;
}

void check_packed(const Tensor& packed, long rows, long inputs, const char* op) {
  require(packed.scalar_type() == ScalarType::Byte && packed.dim() == 3, op,
          "packed must be uint8 of shape (ceil(N/16), ceil(K/16), 64), as pack_ternary makes it");
  if (rows < 0 || packed.size(0) != tiles_of(rows) || packed.size(1) != blocks_of(inputs) || packed.size(2) != kTileBytes)
    fail(op, "packed has shape " + text_of(packed) + ", but " + std::to_string(rows) + " outputs of " +
                 std::to_string(inputs) + " inputs need (" + std::to_string(tiles_of(rows)) + ", " +
                 std::to_string(blocks_of(inputs)) + ", 64)");
  if (inputs > kMaxTernaryInputs)
    fail(op, std::to_string(inputs) + " inputs; at most " + std::to_string(kMaxTernaryInputs) + " are summed exactly");
}

void check_group_scales(const Tensor& scale, long rows, long inputs, int64_t group_size, const char* op) {
  if (group_size != 32 && group_size != 64 && group_size != 128)
    fail(op, "group_size is " + std::to_string(group_size) + "; it must be 32, 64 or 128, or 0 for a scale per output");
  const long groups = (inputs + group_size - 1) / group_size;
  const bool half = scale.scalar_type() == ScalarType::Half || scale.scalar_type() == ScalarType::BFloat16;
  if (!half || scale.dim() != 3 || scale.size(0) != tiles_of(rows) || scale.size(1) != groups || scale.size(2) != kTileRows)
    fail(op, "scale has shape " + text_of(scale) + "; groups of " + std::to_string(group_size) + " of " +
                 std::to_string(inputs) + " inputs need float16 or bfloat16 of shape (" + std::to_string(tiles_of(rows)) +
                 ", " + std::to_string(groups) + ", 16), as pack_group_scales makes it");
}

TernaryWeight weight_of(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias, long rows,
                        long inputs, int64_t group_size, const char* op, std::optional<Kept>& kept) {
  check_packed(packed, rows, inputs, op);
  if (group_size != 0) check_group_scales(scale, rows, inputs, group_size, op);
  kept = Kept{dense(packed), group_size ? dense(scale) : per_row(scale, rows, op, "scale"), bias_of(bias, rows, op)};
  TernaryWeight weight{static_cast<const uint8_t*>(kept->tiles.data_ptr()), nullptr,
                       kept->bias ? floats(*kept->bias) : nullptr, rows, blocks_of(inputs)};
  if (group_size) {
    weight.group_scale = static_cast<const uint16_t*>(kept->scale.data_ptr());
    weight.group_dtype = dtype_of(scale.scalar_type(), op);
    weight.group_blocks = group_size / kBlock;
  } else {
    weight.scale = floats(kept->scale);
  }
  return weight;
}

std::tuple<Tensor, Tensor, Tensor> quantize_activations_op(const Tensor& x, double norm_eps) {
  const char* op = "quantize_activations";
  const Dtype dtype = dtype_of(x.scalar_type(), op);
  const Shape shape = shape_of(x, op);
  const Tensor plain = dense(x);
  Tensor codes = empty(sizes_of(x), ScalarType::Char);
  Tensor step = empty(shape.leading, ScalarType::Float), sum = empty(shape.leading, ScalarType::Int);
  quantize_activations(chosen_path(), {plain.data_ptr(), dtype, shape.tokens, shape.inputs, static_cast<float>(norm_eps)},
                       static_cast<int8_t*>(codes.data_ptr()), static_cast<float*>(step.data_ptr()),
                       static_cast<int32_t*>(sum.data_ptr()));
  return {codes, step, sum};
}

Tensor ternary_linear_op(const Tensor& x, const Tensor& packed, const Tensor& scale, int64_t out_features,
                         const std::optional<Tensor>& bias, double norm_eps, int64_t group_size) {
  const char* op = "ternary_linear";
  const Dtype dtype = dtype_of(x.scalar_type(), op);
  Shape shape = shape_of(x, op);
  std::optional<Kept> kept;
  const TernaryWeight weight = weight_of(packed, scale, bias, out_features, shape.inputs, group_size, op, kept);
  const Tensor plain = dense(x);
  shape.leading.push_back(out_features);
  Tensor y = empty(shape.leading, x.scalar_type());
  ternary_linear(chosen_path(), Activations{plain.data_ptr(), dtype, shape.tokens, shape.inputs, static_cast<float>(norm_eps)},
                 weight, y.data_ptr(), dtype);
  return y;
}

Tensor ternary_linear_quantized_op(const Tensor& codes, const Tensor& x_scale, const Tensor& x_sum,
                                   const Tensor& packed, const Tensor& scale, int64_t out_features,
                                   const std::optional<Tensor>& bias, std::optional<ScalarType> dtype,
                                   int64_t group_size) {
  const char* op = "ternary_linear_quantized";
  require(codes.scalar_type() == ScalarType::Char, op, "codes must be int8");
  Shape shape = shape_of(codes, op);
  require(x_scale.scalar_type() == ScalarType::Float && x_scale.numel() == shape.tokens, op,
          "x_scale must be float32 with one value per token");
  require(x_sum.scalar_type() == ScalarType::Int && x_sum.numel() == shape.tokens, op,
          "x_sum must be int32 with one value per token");
  std::optional<Kept> kept;
  const TernaryWeight weight = weight_of(packed, scale, bias, out_features, shape.inputs, group_size, op, kept);
  const Tensor plain = dense(codes), step = dense(x_scale), sum = dense(x_sum);
  shape.leading.push_back(out_features);
  const ScalarType out = dtype.value_or(ScalarType::Float);
  Tensor y = empty(shape.leading, out);
  ternary_linear(chosen_path(),
                 QuantizedActivations{static_cast<const int8_t*>(plain.data_ptr()), floats(step),
                                      static_cast<const int32_t*>(sum.data_ptr()), shape.tokens, shape.inputs},
                 weight, y.data_ptr(), dtype_of(out, op));
  return y;
}

Tensor int8_linear_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& bias) {
  const char* op = "int8_linear";
  const Dtype dtype = dtype_of(x.scalar_type(), op);
  Shape shape = shape_of(x, op);
  require(weight.scalar_type() == ScalarType::Char && weight.dim() == 2, op, "weight must be int8 of shape (N, K)");
  if (weight.size(1) != shape.inputs)
    fail(op, "activations have " + std::to_string(shape.inputs) + " inputs, the weight has " + std::to_string(weight.size(1)));
  if (shape.inputs > kMaxInt8Inputs)
    fail(op, std::to_string(shape.inputs) + " inputs; at most " + std::to_string(kMaxInt8Inputs) + " are summed exactly");
  const int64_t rows = weight.size(0);
  const Tensor plain = dense(x), codes = dense(weight), row_scale = per_row(scale, rows, op, "scale");
  const std::optional<Tensor> row_bias = bias_of(bias, rows, op);
  shape.leading.push_back(rows);
  Tensor y = empty(shape.leading, x.scalar_type());
  int8_linear(chosen_path(), {plain.data_ptr(), dtype, shape.tokens, shape.inputs, -1.0f},
              {static_cast<const int8_t*>(codes.data_ptr()), floats(row_scale), row_bias ? floats(*row_bias) : nullptr,
               rows, shape.inputs},
              y.data_ptr(), dtype);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FRANKENLM_NAMESPACE, m) {
  m.def("quantize_activations(Tensor x, float norm_eps=-1) -> (Tensor codes, Tensor scale, Tensor sum)");
  m.def(
      "ternary_linear(Tensor x, Tensor packed, Tensor scale, int out_features, Tensor? bias=None, "
      "float norm_eps=-1, int group_size=0) -> Tensor");
  m.def(
      "ternary_linear_quantized(Tensor codes, Tensor x_scale, Tensor x_sum, Tensor packed, Tensor scale, "
      "int out_features, Tensor? bias=None, ScalarType? dtype=None, int group_size=0) -> Tensor");
  m.def("int8_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(FRANKENLM_NAMESPACE, CPU, m) {
  m.impl("quantize_activations", TORCH_BOX(&quantize_activations_op));
  m.impl("ternary_linear", TORCH_BOX(&ternary_linear_op));
  m.impl("ternary_linear_quantized", TORCH_BOX(&ternary_linear_quantized_op));
  m.impl("int8_linear", TORCH_BOX(&int8_linear_op));
}

// Chooses a path, unless `name` is null, and returns the name of the one that runs; null and the reason in `error`
// where there is no such path.
extern "C" __attribute__((visibility("default"))) const char* frankenlm_path(const char* name, char* error,
                                                                             long capacity) {
  try {
    if (name) choose_path(name);
    return chosen_path().name;
  } catch (const std::exception& problem) {
    std::snprintf(error, static_cast<size_t>(capacity), "%s", problem.what());
    return nullptr;
  }
}

}  // namespace frankenlm

// decode_layers as torch sees it: the schema, the checks of what is handed in, and where each tensor belongs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "decoder.h"

namespace frankenlm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The numbers of `sizes` and `settings`, in this order; modeling/decoder_shape.py says the same.
enum Size { kHeads, kKvHeads, kHeadWidth, kFeedforward, kPast, kActivation, kHeadNorms, kAttentionSubnorm,
            kFeedforwardSubnorm, kBiases, kSizes };
enum Setting { kNormEps, kHeadNormEps, kSubnormEps, kLastEps, kAttentionInputEps, kOutputInputEps,
               kFeedforwardInputEps, kDownInputEps, kScale, kSettings };

[[noreturn]] void fail(const std::string& text) { throw std::runtime_error("frankenlm::decode_layers: " + text); }

void require(bool condition, const char* text) {
  if (!condition) fail(text);
}

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t axis = 0;
  for (int64_t size : sizes)
    if (tensor.size(axis++) != size) return false;
  return true;
}

// Hands out a call's tensors in their order, each checked against what must stand there.
class Reader {
 public:
  Reader(const std::vector<Tensor>& tensors, ScalarType stream) : tensors_(tensors), stream_(stream) {}

  // A gain of `width`, or null where the model has no such norm.
  const void* gain(bool there, long width, const char* name) {
    if (!there) return nullptr;
    return next(stream_, {width}, name).data_ptr();
  }

  // Tiles, then a float32 scale for each row or half-precision ones of groups of inputs, then the bias.
  Projection projection(long inputs, long rows, bool bias, const char* name) {
    if (inputs > kMaxTernaryInputs)
      fail(std::string(name) + " has " + std::to_string(inputs) + " inputs; at most " +
           std::to_string(kMaxTernaryInputs) + " are summed exactly");
    TernaryWeight weight{};
    weight.rows = rows, weight.blocks = blocks_of(inputs);
    const Tensor& tiles = next(ScalarType::Byte, {tiles_of(rows), weight.blocks, kTileBytes}, name);
    weight.tiles = static_cast<const uint8_t*>(tiles.data_ptr());
    if (!ended() && tensors_[place_].dim() == 3) {
      group_scales(weight, tensors_[place_].size(1), name);
    } else {
      weight.scale = static_cast<const float*>(next(ScalarType::Float, {rows}, name).data_ptr());
    }
    if (bias) weight.bias = static_cast<const float*>(next(ScalarType::Float, {rows}, name).data_ptr());
    return {weight, inputs};
  }

  bool ended() const { return place_ == tensors_.size(); }

 private:
  void group_scales(TernaryWeight& weight, long groups, const char* name) {
    for (long blocks = kMaxGroupBlocks; blocks >= 2; blocks /= 2)
      if ((weight.blocks + blocks - 1) / blocks == groups) weight.group_blocks = blocks;
    if (!weight.group_blocks) fail(std::string(name) + " has scales of groups that are not of 32, 64 or 128 inputs");
    const ScalarType type = tensors_[place_].scalar_type();
    require(type == ScalarType::BFloat16 || type == ScalarType::Half, "scales of groups must be bfloat16 or float16");
    weight.group_dtype = type == ScalarType::Half ? Dtype::float16 : Dtype::bfloat16;
    weight.group_scale =
        static_cast<const uint16_t*>(next(type, {tiles_of(weight.rows), groups, kTileRows}, name).data_ptr());
  }

  const Tensor& next(ScalarType type, std::initializer_list<int64_t> sizes, const char* name) {
    if (ended()) fail(std::string("tensors end before ") + name);
    const Tensor& found = tensors_[place_++];
    if (found.scalar_type() != type || !has_shape(found, sizes) || !found.is_contiguous())
      fail("tensor " + std::to_string(place_ - 1) + ", " + name + ", has another shape or dtype, or is not contiguous");
    return found;
  }

  const std::vector<Tensor>& tensors_;
  const ScalarType stream_;
  size_t place_ = 0;
};

DecoderLayer read_layer(Reader& read, const Decoder& d, const std::vector<int64_t>& sizes) {
  const long queries = d.heads * d.head_width, pairs = d.kv_heads * d.head_width;
  const auto biased = [&](int place) { return (sizes[kBiases] >> place & 1) != 0; };
  DecoderLayer layer{};
  layer.attention_norm = read.gain(true, d.width, "the norm before attention");
  layer.query = read.projection(d.width, queries, biased(0), "query");
  layer.key = read.projection(d.width, pairs, biased(1), "key");
  layer.value = read.projection(d.width, pairs, biased(2), "value");
  layer.query_norm = read.gain(sizes[kHeadNorms], d.head_width, "the norm of queries");
  layer.key_norm = read.gain(sizes[kHeadNorms], d.head_width, "the norm of keys");
  layer.attention_subnorm = read.gain(sizes[kAttentionSubnorm], queries, "the norm after attention");
  layer.output = read.projection(queries, d.width, biased(3), "output");
  layer.feedforward_norm = read.gain(true, d.width, "the norm before the feed-forward");
  layer.gate = read.projection(d.width, d.feedforward, biased(4), "gate");
  layer.up = read.projection(d.width, d.feedforward, biased(5), "up");
  layer.feedforward_subnorm = read.gain(sizes[kFeedforwardSubnorm], d.feedforward, "the norm inside the feed-forward");
  layer.down = read.projection(d.feedforward, d.width, biased(6), "down");
  // One quantised input carries the sums of one size of groups.
  const auto same = [](const Projection& a, const Projection& b) { return a.weight.group_blocks == b.weight.group_blocks; };
  require(same(layer.query, layer.key) && same(layer.query, layer.value) && same(layer.gate, layer.up),
          "weights that share their input must have groups of one size");
  return layer;
}

void read_cache(DecoderLayer& layer, const Decoder& d, const Tensor& keys, const Tensor& values, ScalarType stream) {
  require(keys.dim() == 4, "keys must be (B, G, room, K)");
  layer.room = keys.size(2);
  for (const Tensor* part : {&keys, &values})
    if (part->scalar_type() != stream || !has_shape(*part, {d.batch, d.kv_heads, layer.room, d.head_width}) ||
        !part->is_contiguous())
      fail("keys and values must be contiguous (B, G, room, K), of the stream's dtype");
  if (layer.room < d.columns())
    fail("the cache has room for " + std::to_string(layer.room) + " tokens; " + std::to_string(d.columns()) + " are needed");
  layer.keys = keys.mutable_data_ptr();
  layer.values = values.mutable_data_ptr();
}

Decoder read_sizes(const Tensor& x, const std::vector<int64_t>& sizes, const std::vector<double>& settings) {
  const ScalarType type = x.scalar_type();
  require(x.dim() == 3, "x must be (B, L, D)");
  require(type == ScalarType::Float || type == ScalarType::BFloat16, "x must be float32 or bfloat16");
  require(sizes.size() == kSizes && settings.size() == kSettings, "another number of sizes or settings");
  Decoder d{};
  d.batch = x.size(0), d.length = x.size(1), d.width = x.size(2);
  d.heads = sizes[kHeads], d.kv_heads = sizes[kKvHeads], d.head_width = sizes[kHeadWidth];
  d.feedforward = sizes[kFeedforward], d.past = sizes[kPast];
  constexpr int64_t kMost = 1 << 20;  // of any size: their products then stay far below what overflows
  for (int64_t size : {sizes[kHeads], sizes[kKvHeads], sizes[kHeadWidth], sizes[kFeedforward], int64_t{d.width}})
    require(size >= 1 && size <= kMost, "sizes must be between 1 and 1,048,576");
  require(d.heads % d.kv_heads == 0, "heads must be a multiple of the heads of keys");
  require(d.head_width % 2 == 0, "the width of a head must be even");
  require(d.past >= 0 && d.past <= kMost * 1024, "past must not be negative");
  require(sizes[kActivation] == 0 || sizes[kActivation] == 1, "there is no such activation");
  d.activation = static_cast<Activation>(sizes[kActivation]);
  d.dtype = type == ScalarType::Float ? Dtype::float32 : Dtype::bfloat16;
  const auto number = [&](Setting place) { return static_cast<float>(settings[place]); };
  d.norm_eps = number(kNormEps), d.head_norm_eps = number(kHeadNormEps), d.subnorm_eps = number(kSubnormEps);
  d.last_eps = number(kLastEps), d.attention_input_eps = number(kAttentionInputEps);
  d.output_input_eps = number(kOutputInputEps), d.feedforward_input_eps = number(kFeedforwardInputEps);
  d.down_input_eps = number(kDownInputEps), d.scale = number(kScale);
  return d;
}

Tensor decode_layers_op(const Tensor& x, const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& visible,
                        std::vector<Tensor> tensors, std::vector<Tensor> keys, std::vector<Tensor> values,
                        std::vector<int64_t> sizes, std::vector<double> settings) {
  Decoder d = read_sizes(x, sizes, settings);
  const ScalarType stream = x.scalar_type();
  const Tensor plain = torch::stable::contiguous(x), cosines = torch::stable::contiguous(cos),
               sines = torch::stable::contiguous(sin);
  for (const Tensor* table : {&cosines, &sines})
    if (table->scalar_type() != stream || !has_shape(*table, {cosines.size(0), d.length, d.head_width}) ||
        (cosines.size(0) != 1 && cosines.size(0) != d.batch))
      fail("cos and sin must be (B or 1, L, K), of x's dtype");
  d.cosines = cosines.data_ptr(), d.sines = sines.data_ptr(), d.table_rows = cosines.size(0);
  std::optional<Tensor> mask;
  if (visible) {
    mask = torch::stable::contiguous(*visible);
    if (mask->scalar_type() != ScalarType::Bool || !has_shape(*mask, {mask->size(0), d.length, d.columns()}) ||
        (mask->size(0) != 1 && mask->size(0) != d.batch))
      fail("visible must be bool (B or 1, L, past + L)");
    d.visible = static_cast<const bool*>(mask->data_ptr()), d.visible_rows = mask->size(0);
  }
  require(keys.size() == values.size(), "another number of keys than of values");
  Reader read(tensors, stream);
  for (size_t i = 0; i < keys.size(); ++i) {
    d.layers.push_back(read_layer(read, d, sizes));
    read_cache(d.layers.back(), d, keys[i], values[i], stream);
  }
  d.last_norm = read.gain(true, d.width, "the last norm");
  require(read.ended(), "more tensors than the layers have");
  Tensor y = torch::stable::empty_like(plain);
  decode_layers(chosen_path(), d, plain.data_ptr(), y.data_ptr());
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(frankenlm, m) {
  m.def(
      "decode_layers(Tensor x, Tensor cos, Tensor sin, Tensor? visible, Tensor[] tensors, Tensor(a!)[] keys, "
      "Tensor(b!)[] values, int[] sizes, float[] settings) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(frankenlm, CPU, m) { m.impl("decode_layers", TORCH_BOX(&decode_layers_op)); }

}  // namespace frankenlm

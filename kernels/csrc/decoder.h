// A decoder's layers for a few new tokens in one call: what is handed in, and the float arithmetic each path provides.
//
// Names of sizes: B rows of the batch, L new tokens of a row, T = B L tokens, D width of the stream, H heads, G heads of
// keys and values, K width of a head, I width of the feed-forward. Elements are float or, as uint16_t, bfloat16: the
// stream's. Between two operations values are held as floats, rounded to the stream's format wherever the layers that
// are called one by one would hand on a tensor of that format.
#pragma once

#include <cstdint>
#include <vector>

#include "ternary.h"

namespace frankenlm {

enum class Activation : int64_t { silu = 0, squared_relu = 1 };

struct Projection {
  TernaryWeight weight;
  long inputs;
};

// Gains of RMS norms are of the stream's format; null where a layer has no such norm.
struct DecoderLayer {
  const void* attention_norm;    // [D]
  Projection query, key, value;
  const void* query_norm;        // [K], of each head
  const void* key_norm;          // [K]
  const void* attention_subnorm;  // [H K]
  Projection output;
  const void* feedforward_norm;  // [D]
  Projection gate, up;
  const void* feedforward_subnorm;  // [I]
  Projection down;
  void* keys;                    // [B][G][room][K]; the new tokens' are written behind the `past` first
  void* values;
  long room;
};

struct Decoder {
  std::vector<DecoderLayer> layers;
  const void* last_norm;  // [D]
  long batch, length, width, heads, kv_heads, head_width, feedforward;
  long past;              // columns of the cache in front of the new tokens
  Activation activation;
  Dtype dtype;
  float norm_eps, head_norm_eps, subnorm_eps, last_eps;
  float attention_input_eps, output_input_eps, feedforward_input_eps, down_input_eps;  // of a packed layer's own norm
  float scale;            // of the scores
  const void* cosines;    // [B or 1][L][K]
  const void* sines;
  long table_rows;        // B or 1
  const bool* visible;    // [B or 1][L][past + L], or null: each token sees what came before it, and itself
  long visible_rows;      // B or 1

  long tokens() const { return batch * length; }
  long columns() const { return past + length; }
};

// x: [B][L][D] of the stream's format; y likewise, after the last norm.
void decode_layers(const Path&, const Decoder&, const void* x, void* y);

// A range of columns that a query sees.
struct Run {
  long first, last;
};

// Some queries that share their keys, and what they see of them.
template <class T>
struct Queries {
  const float* query;  // [count][K]
  long count;
  const T* keys;       // [columns][K]
  const T* values;     // [columns][K]
  const Run* runs;
  long run_count, columns, width;  // columns: seen in all
  float scale;
};

template <class T>
struct DecoderFloats {
  void (*widen)(const T* from, long count, float* to);
  void (*narrow)(const float* from, long count, T* to);
  void (*round)(float* x, long count);  // to the stream's format and back
  void (*norm)(const float* x, const T* gain, long count, float eps, float* out);
  void (*turn)(float* head, const T* cosines, const T* sines, long width);
  void (*add)(float* stream, float* y, long count);  // stream += y, each rounded
  // act(gate) * up; gate and up are rounded first
  void (*gate)(Activation, const float* gate, const float* up, long count, float* out);
  // softmax(scale q K^T) V of each query, rounded; zeros where none is seen. `scores`: count * score_stride(columns).
  void (*attend)(const Queries<T>&, float* scores, float* out);
};

inline long score_stride(long columns) { return (columns + 31) / 16 * 16; }

// The functions of the path in use.
template <class T>
const DecoderFloats<T>& decoder_floats();

}  // namespace frankenlm

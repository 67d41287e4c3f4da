// The order of a decoding step: its stages, what each thread does of them, and where threads meet.
//
// One team of threads goes through all layers. A product's output rows are shared among the threads; what lies between
// two products is done token by token. Where there are fewer tokens than threads, every thread normalises and quantises
// all of them for itself, which costs no more time than waiting for the one that would do it.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "decoder.h"
#include "team.h"

namespace frankenlm {
namespace {

constexpr long kLonelyProducts = 600000;   // of a layer; below, threads wait for each other longer than they work
constexpr long kCachedTiles = 256 * 1024;  // bytes of a weight that meet one panel after the other
constexpr long kLine = 64;

long padded(long bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Memory for one call, handed out in lines; kept from call to call. Nothing is handed out while threads run.
class Workspace {
 public:
  void reserve(long bytes) {
    if (bytes <= size_) return;
    memory_.reset(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{kLine})));
    size_ = bytes;
  }
  void start() { used_ = 0; }
  template <class T>
  T* take(long count) {
    T* place = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += padded(count * static_cast<long>(sizeof(T)));
    return place;
  }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t{kLine}); }
  };
  std::unique_ptr<char, Free> memory_;
  long size_ = 0, used_ = 0;
};

// Quantised tokens in panels of at most kPanelTokens.
struct Panels {
  int8_t* codes;  // [panels][blocks][tokens of the panel][16]
  float* step;    // [T]
  int32_t* sum;   // [T]
  // For weights with scales of groups, as Panel has them, panel after panel.
  int32_t* group_offset;
  int32_t* group_halves;
};

template <class T>
class Step {
 public:
  Step(const Path& path, const Decoder& d, long threads, Workspace& space)
      : path_(path), floats_(decoder_floats<T>()), d_(d), threads_(threads) {
    for (bool counting : {true, false}) carve(counting, space);
    find_runs();
  }

  void run(Team& team, const void* x, void* y) {
    const auto [first, last] = team.share(d_.tokens());
    for (long t = first; t < last; ++t)
      floats_.widen(static_cast<const T*>(x) + t * d_.width, d_.width, stream_ + t * d_.width);
    if (alone_) team.meet();  // every thread reads every token
    for (const DecoderLayer& layer : d_.layers) {
      attention(team, layer);
      feedforward(team, layer);
    }
    for (long t = first; t < last; ++t) {
      float* out = temporary(team);
      floats_.norm(stream_ + t * d_.width, static_cast<const T*>(d_.last_norm), d_.width, d_.last_eps, out);
      floats_.narrow(out, d_.width, static_cast<T*>(y) + t * d_.width);
    }
  }

 private:
  void carve(bool counting, Workspace& space) {
    if (!counting) space.reserve(bytes_);
    space.start();
    const long tokens = d_.tokens(), queries = d_.heads * d_.head_width, pairs = d_.kv_heads * d_.head_width;
    const long widest = std::max({d_.width, queries, d_.feedforward});
    const long groups = d_.heads / d_.kv_heads;
    alone_ = tokens < threads_;
    const auto floats = [&](long count) { return carve_one<float>(counting, space, count); };
    stream_ = floats(tokens * d_.width);
    query_ = floats(tokens * queries);
    key_ = floats(tokens * pairs);
    value_ = floats(tokens * pairs);
    attended_ = floats(tokens * queries);
    gate_ = floats(tokens * d_.feedforward);
    up_ = floats(tokens * d_.feedforward);
    product_ = floats(tokens * d_.width);
    score_room_ = groups * score_stride(d_.columns());
    temporary_room_ = padded(4 * widest) / 4;
    scores_ = floats(threads_ * score_room_);
    temporaries_ = floats(threads_ * temporary_room_);
    panels_.resize(alone_ ? threads_ : 1);
    for (Panels& panels : panels_) {
      panels.codes = carve_one<int8_t>(counting, space, tokens * blocks_of(widest) * kBlock);
      panels.step = floats(tokens);
      panels.sum = carve_one<int32_t>(counting, space, tokens);
      panels.group_offset = carve_one<int32_t>(counting, space, tokens * most_groups());
      panels.group_halves = carve_one<int32_t>(counting, space, tokens * most_groups());
    }
  }

  template <class E>
  E* carve_one(bool counting, Workspace& space, long count) {
    if (!counting) return space.take<E>(count);
    bytes_ += padded(count * static_cast<long>(sizeof(E)));
    return nullptr;
  }

  long most_groups() const {
    long most = 0;
    for (const DecoderLayer& layer : d_.layers)
      for (const Projection* p : {&layer.query, &layer.output, &layer.gate, &layer.down})
        most = std::max(most, p->weight.groups());
    return most;
  }

  // Which columns each token sees, as stretches; most see one.
  void find_runs() {
    const long columns = d_.columns(), rows = d_.tokens();
    first_run_.push_back(0);
    for (long row = 0; row < rows; ++row) {
      const long b = row / d_.length, l = row % d_.length;
      long seen = 0;
      if (!d_.visible) {
        seen = d_.past + l + 1;
        runs_.push_back({0, seen});
      } else {
        const bool* visible = d_.visible + ((d_.visible_rows == 1 ? 0 : b) * d_.length + l) * columns;
        for (long t = 0; t < columns; ++t) {
          if (!visible[t]) continue;
          if (t > 0 && visible[t - 1] && runs_.size() > static_cast<size_t>(first_run_.back())) runs_.back().last = t + 1;
          else runs_.push_back({t, t + 1});
          ++seen;
        }
      }
      first_run_.push_back(static_cast<long>(runs_.size()));
      seen_.push_back(seen);
    }
  }

  float* temporary(const Team& team) const { return temporaries_ + team.place() * temporary_room_; }
  const Panels& panels(const Team& team) const { return panels_[alone_ ? team.place() : 0]; }

  static long panel_count(long tokens) { return (tokens + kPanelTokens - 1) / kPanelTokens; }
  // Panels of nearly equal size: 9 tokens are 5 and 4, not 8 and 1.
  static long panel_begin(long tokens, long i) { return i * tokens / panel_count(tokens); }

  // Tokens of `from`, [T][inputs], to panels for `p` and what shares its input: through the RMS norm `gain` unless
  // null, then to int8.
  void prepare(Team& team, const float* from, const void* gain, float eps, float input_eps, const Projection& p) {
    const long tokens = d_.tokens(), blocks = p.weight.blocks, count = panel_count(tokens);
    const auto [first, last] = alone_ ? std::pair<long, long>(0, tokens) : team.share(tokens);
    const Panels& to = panels(team);
    for (long t = first; t < last; ++t) {
      const float* x = from + t * p.inputs;
      if (gain) {
        floats_.norm(x, static_cast<const T*>(gain), p.inputs, eps, temporary(team));
        x = temporary(team);
      }
      const long i = ((t + 1) * count - 1) / tokens;  // the panel whose range holds t
      const long begin = panel_begin(tokens, i), size = panel_begin(tokens, i + 1) - begin;
      int8_t* codes = to.codes + begin * blocks * kBlock + (t - begin) * kBlock;
      path_.quantize(x, p.inputs, input_eps, codes, size * kBlock, to.step + t, to.sum + t);
    }
    if (!alone_) team.meet();
    if (p.weight.group_blocks) add_group_sums(team, p.weight);
  }

  void add_group_sums(Team& team, const TernaryWeight& w) {
    const long tokens = d_.tokens(), count = panel_count(tokens);
    const auto [first, last] = alone_ ? std::pair<long, long>(0, count) : team.share(count);
    const Panels& to = panels(team);
    for (long i = first; i < last; ++i) {
      const long begin = panel_begin(tokens, i), size = panel_begin(tokens, i + 1) - begin;
      fill_group_offsets(to.codes + begin * w.blocks * kBlock, size, w.blocks, w.group_blocks,
                         to.group_offset + begin * w.groups(), to.group_halves + begin * w.groups());
    }
    if (!alone_) team.meet();
  }

  // Rows of tiles [first, last) for all tokens; y is [T][rows].
  void multiply(Team& team, const Projection& p, long first, long last, float* y) {
    const TernaryWeight& w = p.weight;
    const long tokens = d_.tokens(), count = panel_count(tokens);
    const Panels& from = panels(team);
    const long chunk = count == 1 ? last - first : std::max(1L, kCachedTiles / std::max(1L, w.blocks * kTileBytes));
    for (long tile = first; tile < last; tile += chunk) {
      const long end = std::min(tile + chunk, last);
      for (long i = 0; i < count; ++i) {
        const long begin = panel_begin(tokens, i), size = panel_begin(tokens, i + 1) - begin;
        const Panel panel{from.codes + begin * w.blocks * kBlock,
                          from.step + begin,
                          from.sum + begin,
                          size,
                          w.blocks,
                          from.group_offset + begin * w.groups(),
                          from.group_halves + begin * w.groups()};
        path_.ternary(panel, w, tile, end, y + begin * w.rows, w.rows);
      }
    }
  }

  void round(const Projection& p, long first, long last, float* y) {
    const long row = first * kTileRows, rows = std::min(last * kTileRows, p.weight.rows) - row;
    for (long t = 0; t < d_.tokens(); ++t) floats_.round(y + t * p.weight.rows + row, rows);
  }

  // This thread's rows of several products with the same inputs, rounded; their tiles are shared as one.
  void multiply_all(Team& team, std::initializer_list<std::pair<const Projection*, float*>> products) {
    long all = 0;
    for (const auto& [p, y] : products) all += tiles_of(p->weight.rows);
    const auto [first, last] = team.share(all);
    long before = 0;
    for (const auto& [p, y] : products) {
      const long tiles = tiles_of(p->weight.rows);
      const long begin = std::clamp(first - before, 0L, tiles), end = std::clamp(last - before, 0L, tiles);
      if (begin < end) {
        multiply(team, *p, begin, end, y);
        round(*p, begin, end, y);
      }
      before += tiles;
    }
    team.meet();
  }

  // stream += p(panels), each thread its rows.
  void add_product(Team& team, const Projection& p) {
    const auto [first, last] = team.share(tiles_of(p.weight.rows));
    const long row = first * kTileRows, rows = std::min(last * kTileRows, p.weight.rows) - row;
    if (rows > 0) {
      multiply(team, p, first, last, product_);
      for (long t = 0; t < d_.tokens(); ++t)
        floats_.add(stream_ + t * d_.width + row, product_ + t * d_.width + row, rows);
    }
    team.meet();
  }

  void attention(Team& team, const DecoderLayer& layer) {
    prepare(team, stream_, layer.attention_norm, d_.norm_eps, d_.attention_input_eps, layer.query);
    multiply_all(team, {{&layer.query, query_}, {&layer.key, key_}, {&layer.value, value_}});
    place_heads(team, layer);
    attend(team, layer);
    prepare(team, attended_, layer.attention_subnorm, d_.subnorm_eps, d_.output_input_eps, layer.output);
    add_product(team, layer.output);
  }

  void feedforward(Team& team, const DecoderLayer& layer) {
    prepare(team, stream_, layer.feedforward_norm, d_.norm_eps, d_.feedforward_input_eps, layer.gate);
    const auto [first, last] = team.share(tiles_of(d_.feedforward));
    const long row = first * kTileRows, rows = std::min(last * kTileRows, d_.feedforward) - row;
    if (rows > 0) {
      multiply(team, layer.gate, first, last, gate_);
      multiply(team, layer.up, first, last, up_);
      for (long t = 0; t < d_.tokens(); ++t) {
        float* gate = gate_ + t * d_.feedforward + row;
        floats_.gate(d_.activation, gate, up_ + t * d_.feedforward + row, rows, gate);
      }
    }
    team.meet();
    prepare(team, gate_, layer.feedforward_subnorm, d_.subnorm_eps, d_.down_input_eps, layer.down);
    add_product(team, layer.down);
  }

  // Norms and positions of the new queries and keys; keys and values go to the cache.
  void place_heads(Team& team, const DecoderLayer& layer) {
    const long per_token = d_.heads + d_.kv_heads, width = d_.head_width;
    const auto [first, last] = team.share(d_.tokens() * per_token);
    for (long i = first; i < last; ++i) {
      const long t = i / per_token, h = i % per_token, b = t / d_.length, l = t % d_.length;
      const bool is_key = h >= d_.heads;
      const long g = h - d_.heads;
      float* head = is_key ? key_ + (t * d_.kv_heads + g) * width : query_ + (t * d_.heads + h) * width;
      const void* gain = is_key ? layer.key_norm : layer.query_norm;
      if (gain) floats_.norm(head, static_cast<const T*>(gain), width, d_.head_norm_eps, head);
      const long table = ((d_.table_rows == 1 ? 0 : b) * d_.length + l) * width;
      floats_.turn(head, static_cast<const T*>(d_.cosines) + table, static_cast<const T*>(d_.sines) + table, width);
      if (!is_key) continue;
      const long place = ((b * d_.kv_heads + g) * layer.room + d_.past + l) * width;
      floats_.narrow(head, width, static_cast<T*>(layer.keys) + place);
      floats_.narrow(value_ + (t * d_.kv_heads + g) * width, width, static_cast<T*>(layer.values) + place);
    }
    team.meet();
  }

  // How many of the queries that share their keys one piece of work takes: more read the keys less often, fewer let
  // all threads work to the end.
  long queries_at_once() const {
    const long group = d_.heads / d_.kv_heads, heads = d_.tokens() * d_.kv_heads;
    for (long size : {8L, 4L, 2L})
      if (size <= group && heads * (group / size) >= 4 * threads_) return size;
    for (long size : {4L, 2L})
      if (size <= group && group % size == 0 && heads * (group / size) % threads_ == 0) return size;
    return 1;
  }

  void attend(Team& team, const DecoderLayer& layer) {
    const long group = d_.heads / d_.kv_heads, width = d_.head_width, size = threads_ == 1 ? group : queries_at_once();
    const long parts = (group + size - 1) / size;
    const auto [first, last] = team.share(d_.tokens() * d_.kv_heads * parts);
    float* scores = scores_ + team.place() * score_room_;
    for (long i = first; i < last; ++i) {
      // rows of the batch, heads of keys, new tokens, parts: keys of one head are met by all their queries in turn
      const long part = i % parts, l = i / parts % d_.length, g = i / parts / d_.length % d_.kv_heads;
      const long b = i / parts / d_.length / d_.kv_heads, t = b * d_.length + l;
      const long place = (b * d_.kv_heads + g) * layer.room * width, head = (t * d_.heads + g * group + part * size) * width;
      const Queries<T> queries{query_ + head,
                               std::min(size, group - part * size),
                               static_cast<const T*>(layer.keys) + place,
                               static_cast<const T*>(layer.values) + place,
                               runs_.data() + first_run_[t],
                               first_run_[t + 1] - first_run_[t],
                               seen_[t],
                               width,
                               d_.scale};
      floats_.attend(queries, scores, attended_ + head);
    }
    team.meet();
  }

  const Path& path_;
  const DecoderFloats<T>& floats_;
  const Decoder& d_;
  const long threads_;
  bool alone_ = false;  // each thread prepares all tokens for itself
  long bytes_ = 0, score_room_ = 0, temporary_room_ = 0;
  float *stream_, *query_, *key_, *value_, *attended_, *gate_, *up_, *product_, *scores_, *temporaries_;
  std::vector<Panels> panels_;
  std::vector<Run> runs_;
  std::vector<long> first_run_, seen_;  // per token
};

long products_of(const Decoder& d) {
  long products = 0;
  for (const DecoderLayer& layer : d.layers)
    for (const Projection* p : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down})
      products = std::max(products, d.tokens() * p->inputs * p->weight.rows);
  return products;
}

template <class T>
void decode(const Path& path, const Decoder& decoder, const void* x, void* y) {
  const long threads = products_of(decoder) < kLonelyProducts ? 1 : thread_count();
  thread_local Workspace space;
  Step<T> step(path, decoder, threads, space);
  as_team(threads, [&](Team& team) { step.run(team, x, y); });
}

}  // namespace

void decode_layers(const Path& path, const Decoder& decoder, const void* x, void* y) {
  if (decoder.tokens() == 0) return;
  if (decoder.dtype == Dtype::float32) decode<float>(path, decoder, x, y);
  else decode<uint16_t>(path, decoder, x, y);
}

}  // namespace frankenlm

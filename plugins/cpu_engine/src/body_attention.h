// Blocked attention over the paged pool, on top of Tile<Flavour>: 32 keys (or 32 columns of the
// values) at a time are repacked into a panel that all query rows of a KV head share. While one
// section is computed, head after head, the next one is fetched in the order in which it lies in
// memory. The promise of exactness is in kernels.h.
#pragma once

#include "body_gemm.h"

namespace superinfer::cpu {
namespace {

constexpr float kNegativeInfinity = -__builtin_inff();

// Scratch of one call, carved from the caller's memory; rows are (query, head) pairs.
template <class Flavour>
struct AttentionScratch {
  typename Flavour::Activation* q;       // [rows][depth]
  typename Flavour::Activation* weight;  // [rows][kSection]
  typename Flavour::Weight* panel;       // [max(depth, kSection)][32]
  float* score;                          // [rows][kSection]
  float* value;                          // [rows][depth], unnormalised
  float* most;                           // [rows] maximum so far
  float* total;                          // [rows] sum of weights so far
  float* keep;                           // [rows] factor of what was there, this section
  float* take;                           // [rows] factor of this section

  static std::size_t rows_padded(int group) {
    return static_cast<std::size_t>(round_up(kQueryBlock * group, kRowStep) + kRowStep);
  }

  static std::size_t bytes(int group, int head_dim) {
    const std::size_t rows = rows_padded(group);
    const auto depth = static_cast<std::size_t>(round_up(head_dim, kDepthStep));
    const auto section = static_cast<std::size_t>(kSection);
    const std::size_t panel = (depth > section ? depth : section) * kPanel;
    return rows * (depth + section) * sizeof(*q) + panel * sizeof(*panel_type()) +
           rows * (section + depth + 4) * sizeof(float) + 16 * 64;
  }

  AttentionScratch(void* memory, int group, int head_dim) {
    const std::size_t rows = rows_padded(group);
    const auto depth = static_cast<std::size_t>(round_up(head_dim, kDepthStep));
    const auto section = static_cast<std::size_t>(kSection);
    auto* at = static_cast<unsigned char*>(memory);
    take_array(at, q, rows * depth);
    take_array(at, weight, rows * section);
    take_array(at, panel, (depth > section ? depth : section) * kPanel);
    take_array(at, score, rows * section);
    take_array(at, value, rows * depth);
    take_array(at, most, rows);
    take_array(at, total, rows);
    take_array(at, keep, rows);
    take_array(at, take, rows);
  }

  // The part of one KV head, whose rows begin at `row`.
  AttentionScratch from(std::ptrdiff_t row, std::ptrdiff_t depth) const {
    AttentionScratch part = *this;
    part.q += row * depth;
    part.weight += row * kSection;
    part.score += row * kSection;
    part.value += row * depth;
    part.most += row;
    part.total += row;
    part.keep += row;
    part.take += row;
    return part;
  }

 private:
  static const typename Flavour::Weight* panel_type() { return nullptr; }
  template <class T>
  static void take_array(unsigned char*& at, T*& array, std::size_t count) {
    array = reinterpret_cast<T*>(at);
    at += (count * sizeof(T) + 63) / 64 * 64;
  }
};

inline const unsigned char* key_of(const KvPlace& kv, std::ptrdiff_t token) {
  const int block = static_cast<int>(token) / kv.block_tokens;
  const int offset = static_cast<int>(token) - block * kv.block_tokens;
  return kv.pool + static_cast<std::size_t>(kv.slots[block]) * kv.block_bytes +
         static_cast<std::size_t>(offset) * kv.token_bytes;
}

// Calls body(first token relative to `begin`, tokens, address) for each run of tokens in one block.
template <class Body>
inline void for_runs(const KvPlace& kv, std::ptrdiff_t begin, std::ptrdiff_t count, Body body) {
  std::ptrdiff_t done = 0;
  while (done < count) {
    const std::ptrdiff_t token = begin + done;
    const std::ptrdiff_t left = kv.block_tokens - static_cast<int>(token) % kv.block_tokens;
    const std::ptrdiff_t run = lesser(left, count - done);
    body(done, run, key_of(kv, token));
    done += run;
  }
}

// Tokens whose keys and values are to be fetched, a few at a time.
struct Fetch {
  const KvPlace* kv = nullptr;
  std::ptrdiff_t token = 0;
  std::ptrdiff_t end = 0;
  std::size_t row_bytes = 0;

  void some(std::ptrdiff_t count) {
    count = lesser(count, end - token);
    if (count <= 0) return;
    for_runs(*kv, token, count, [&](std::ptrdiff_t, std::ptrdiff_t run, const unsigned char* src) {
      fetch_rows(src, run);
      fetch_rows(src + kv->value_offset_bytes, run);
    });
    token += count;
  }

  void fetch_rows(const unsigned char* src, std::ptrdiff_t rows) const {
    const bool dense = row_bytes == kv->token_bytes;  // then the rows are one range
    const std::size_t width = dense ? row_bytes * static_cast<std::size_t>(rows) : row_bytes;
    for (std::ptrdiff_t i = 0; i < (dense ? 1 : rows); ++i, src += kv->token_bytes) {
      for (std::size_t byte = 0; byte < width; byte += 64) __builtin_prefetch(src + byte, 0, 2);
    }
  }
};

// Panel of `count` keys from `begin` on, [depth / pair][32][pair]; missing keys and the padding of
// the depth are zero.
template <class Flavour>
inline void pack_keys(const Attention& t, std::ptrdiff_t begin, std::ptrdiff_t count,
                      std::ptrdiff_t depth, typename Flavour::Weight* panel) {
  const std::ptrdiff_t dwords = t.head_dim / Flavour::kPair;
  auto* dst = reinterpret_cast<std::uint32_t*>(panel);
  for (std::ptrdiff_t half = 0; half < 2; ++half) {
    const std::ptrdiff_t first = half * 16;
    const std::ptrdiff_t here = count - first < 0 ? 0 : lesser(16, count - first);
    const std::ptrdiff_t token = begin + first;
    const bool whole =
        here > 0 && static_cast<int>(token) % t.kv.block_tokens + here <= t.kv.block_tokens;
    if (here == 0) {
      transpose16(nullptr, 0, 0, dwords, dst + first);
    } else if (whole) {
      transpose16(key_of(t.kv, token), t.kv.token_bytes, here, dwords, dst + first);
    } else {
      alignas(64) unsigned char rows[16 * 256 * 4];
      const std::size_t row_bytes = static_cast<std::size_t>(dwords) * 4;
      for_runs(t.kv, token, here, [&](std::ptrdiff_t at, std::ptrdiff_t run, const unsigned char* src) {
        for (std::ptrdiff_t i = 0; i < run; ++i) {
          __builtin_memcpy(rows + static_cast<std::size_t>(at + i) * row_bytes,
                           src + static_cast<std::size_t>(i) * t.kv.token_bytes, row_bytes);
        }
      });
      transpose16(rows, row_bytes, here, dwords, dst + first);
    }
  }
  const std::ptrdiff_t padding = (depth - t.head_dim) / Flavour::kPair * 32 * 4;
  __builtin_memset(dst + dwords * 32, 0, static_cast<std::size_t>(padding));
}

inline void pack_value_rows(const std::uint16_t* a, const std::uint16_t* b, std::ptrdiff_t columns,
                            std::uint16_t* dst) {
  interleave_rows(a, b, columns, dst);
}
inline void pack_value_rows(const float* a, const float* b, std::ptrdiff_t columns, float* dst) {
  const float* rows[2] = {a, b};
  for (std::ptrdiff_t r = 0; r < 2; ++r) {
    for (std::ptrdiff_t c = 0; c < kPanel; c += 8) {
      for (std::ptrdiff_t i = c; i < c + 8; ++i) {
        dst[r * kPanel + i] = rows[r] != nullptr && c < columns ? rows[r][i] : 0.0F;
      }
    }
  }
}

// Panel of values: 32 columns from `column` on of `count` tokens from `begin` on, [padded / pair][32][pair].
template <class Flavour>
inline void pack_values(const Attention& t, std::ptrdiff_t begin, std::ptrdiff_t count,
                        std::ptrdiff_t padded, std::ptrdiff_t column,
                        typename Flavour::Weight* panel) {
  using Weight = typename Flavour::Weight;
  const Weight* rows[kSection];
  for_runs(t.kv, begin, count, [&](std::ptrdiff_t at, std::ptrdiff_t run, const unsigned char* src) {
    for (std::ptrdiff_t i = 0; i < run; ++i) {
      rows[at + i] = reinterpret_cast<const Weight*>(src + t.kv.value_offset_bytes +
                                                     static_cast<std::size_t>(i) * t.kv.token_bytes) +
                     column;
    }
  });
  for (std::ptrdiff_t i = count; i < padded; ++i) rows[i] = nullptr;
  const std::ptrdiff_t columns = lesser(kPanel, t.head_dim - column);
  for (std::ptrdiff_t i = 0; i < padded; i += 2) {
    pack_value_rows(rows[i], rows[i + 1], columns, panel + i * kPanel);
  }
}

// Weights of one row's section from its scores, and the factors that fold the section in.
template <class Flavour>
inline void soften(const AttentionScratch<Flavour>& s, std::ptrdiff_t row, std::ptrdiff_t visible,
                   std::ptrdiff_t padded, float scale) {
  float* score = s.score + row * kSection;
  auto* weight = s.weight + row * kSection;
  if (visible <= 0) {
    __builtin_memset(weight, 0, static_cast<std::size_t>(padded) * sizeof(*weight));
    return;
  }
  for (std::ptrdiff_t i = visible; i < padded; ++i) score[i] = kNegativeInfinity;
  F16 most = load(score);
  for (std::ptrdiff_t i = 16; i < padded; i += 16) most = max(most, load(score + i));
  const float section_most = reduce_max(most);
  const F16 shift = set1(section_most);
  F16 sum = set1(0.0F);
  for (std::ptrdiff_t i = 0; i < padded; i += 16) {
    const F16 w = exp(mul(sub(load(score + i), shift), set1(scale)));
    sum = add(sum, w);
    store(weight + i, w);
  }
  const float before = s.most[row];
  const float now = before > section_most ? before : section_most;
  s.keep[row] = exp1((before - now) * scale);
  s.take[row] = exp1((section_most - now) * scale);
  s.total[row] = s.total[row] * s.keep[row] + reduce_add(sum) * s.take[row];
  s.most[row] = now;
}

// One call's sizes, and what it does between two computations.
struct Course {
  std::ptrdiff_t rows;   // of one KV head
  std::ptrdiff_t depth;  // of a head, padded
  float scale;
  Fetch fetch;
  std::ptrdiff_t fetch_tokens;  // a time
};

// Scores of keys begin .. begin + count - 1 for the rows of one KV head, then their weights.
template <class Flavour>
inline void score_section(const Attention& t, const AttentionScratch<Flavour>& s, Course& course,
                          std::ptrdiff_t begin, std::ptrdiff_t count) {
  const std::ptrdiff_t padded = round_up(count, kPanel);
  const std::ptrdiff_t depth = course.depth;
  for (std::ptrdiff_t key = 0; key < padded; key += kPanel) {
    course.fetch.some(course.fetch_tokens);
    pack_keys<Flavour>(t, begin + key, lesser(kPanel, count - key), depth, s.panel);
    for_tiles<Flavour>(0, course.rows, [&](std::ptrdiff_t row, std::ptrdiff_t tile) {
      Tile<Flavour>::run(tile, s.q + row * depth, depth, s.panel, depth,
                         s.score + row * kSection + key, kSection, Ahead{});
    });
  }
  for (std::ptrdiff_t row = 0; row < course.rows; ++row) {
    const std::ptrdiff_t seen = t.position + row / t.group + 1 - begin;
    soften(s, row, lesser(seen, count), padded, course.scale);
  }
}

// Folds the values of the same keys in.
template <class Flavour>
inline void value_section(const Attention& t, const AttentionScratch<Flavour>& s, Course& course,
                          std::ptrdiff_t begin, std::ptrdiff_t count) {
  const std::ptrdiff_t padded = round_up(count, kPanel);
  alignas(64) float c[Tile<Flavour>::kRows * kPanel];
  for (std::ptrdiff_t column = 0; column < course.depth; column += kPanel) {
    course.fetch.some(course.fetch_tokens);
    pack_values<Flavour>(t, begin, count, padded, column, s.panel);
    for_tiles<Flavour>(0, course.rows, [&](std::ptrdiff_t first, std::ptrdiff_t tile) {
      Tile<Flavour>::run(tile, s.weight + first * kSection, kSection, s.panel, padded, c, kPanel,
                         Ahead{});
      for (std::ptrdiff_t i = 0; i < tile; ++i) {
        const std::ptrdiff_t row = first + i;
        if (t.position + row / t.group < begin) continue;
        float* value = s.value + row * course.depth + column;
        const F16 keep = set1(s.keep[row]);
        const F16 take = set1(s.take[row]);
        store(value, fma(load(value), keep, mul(load(c + i * kPanel), take)));
        store(value + 16, fma(load(value + 16), keep, mul(load(c + i * kPanel + 16), take)));
      }
    });
  }
}

template <class Flavour>
inline void begin_head(const Attention& t, const AttentionScratch<Flavour>& s,
                       const Course& course) {
  using Activation = typename Flavour::Activation;
  const auto used = static_cast<std::size_t>(t.head_dim) * sizeof(Activation);
  const auto width = static_cast<std::size_t>(course.depth) * sizeof(Activation);
  for (std::ptrdiff_t row = 0; row < course.rows; ++row) {
    const auto* q = static_cast<const Activation*>(t.q) + row / t.group * t.ld_q +
                    row % t.group * t.head_dim;
    auto* copy = reinterpret_cast<unsigned char*>(s.q + row * course.depth);
    __builtin_memcpy(copy, q, used);
    __builtin_memset(copy + used, 0, width - used);
    float* value = s.value + row * course.depth;
    __builtin_memset(value, 0, static_cast<std::size_t>(course.depth) * sizeof(float));
    s.most[row] = kNegativeInfinity;
    s.total[row] = 0.0F;
  }
}

template <class Flavour>
inline void end_head(const Attention& t, const AttentionScratch<Flavour>& s, const Course& course) {
  using Activation = typename Flavour::Activation;
  for (std::ptrdiff_t row = 0; row < course.rows; ++row) {
    auto* out = static_cast<Activation*>(t.out) + row / t.group * t.ld_out +
                row % t.group * t.head_dim;
    const F16 factor = set1(1.0F / s.total[row]);
    alignas(64) Activation line[256];
    for (std::ptrdiff_t i = 0; i < course.depth; i += 16) {
      store(line + i, mul(load(s.value + row * course.depth + i), factor));
    }
    __builtin_memcpy(out, line, static_cast<std::size_t>(t.head_dim) * sizeof(Activation));
  }
}

// The call as one of its KV heads sees it.
template <class Flavour>
inline Attention of_head(const Attention& t, std::ptrdiff_t head) {
  using Activation = typename Flavour::Activation;
  const std::ptrdiff_t columns = head * t.head_dim;
  Attention one = t;
  one.q = static_cast<const Activation*>(t.q) + columns * t.group;
  one.out = static_cast<Activation*>(t.out) + columns * t.group;
  one.kv.pool += static_cast<std::size_t>(columns) * sizeof(typename Flavour::Weight);
  return one;
}

template <class Flavour>
void attention(const Attention& t) {
  Tile<Flavour>::enter();
  const AttentionScratch<Flavour> s(t.scratch, t.group, t.head_dim);
  Course course{};
  course.rows = static_cast<std::ptrdiff_t>(t.queries) * t.group;
  course.depth = round_up(t.head_dim, kDepthStep);
  course.scale = 1.0F / __builtin_sqrtf(static_cast<float>(t.head_dim));
  const auto row_bytes =
      static_cast<std::size_t>(t.kv_heads * t.head_dim) * sizeof(typename Flavour::Weight);
  const std::ptrdiff_t pauses = t.kv_heads * ((kSection + course.depth) / kPanel);
  const std::ptrdiff_t keys = t.position + t.queries;
  for (std::ptrdiff_t begin = 0; begin < keys; begin += kSection) {
    const std::ptrdiff_t after = begin + kSection;
    if (after < keys) {
      course.fetch = {&t.kv, after, lesser(after + kSection, keys), row_bytes};
    } else {
      course.fetch = {t.next, 0, t.next == nullptr ? 0 : lesser(kSection, t.next_tokens), row_bytes};
    }
    course.fetch_tokens = (course.fetch.end - course.fetch.token + pauses - 1) / pauses;
    for (std::ptrdiff_t head = 0; head < t.kv_heads; ++head) {
      const Attention one = of_head<Flavour>(t, head);
      const auto part = s.from(head * course.rows, course.depth);
      if (begin == 0) begin_head(one, part, course);
      score_section(one, part, course, begin, lesser(kSection, keys - begin));
      value_section(one, part, course, begin, lesser(kSection, keys - begin));
      if (after >= keys) end_head(one, part, course);
    }
  }
}

}  // namespace
}  // namespace superinfer::cpu

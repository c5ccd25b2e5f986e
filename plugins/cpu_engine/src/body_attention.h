// Blocked attention over the paged pool, on top of Tile<Flavour>: 32 keys (or 32 columns of the
// values) at a time are repacked into a panel that all query rows of a KV head share. A section is
// first copied out of the pool in the order in which it lies there: short scattered reads of a head
// at a time would get a fraction of the memory's bandwidth. The promise of exactness is in
// kernels.h.
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
  unsigned char* keys;                   // [kSection][row bytes] of the pool
  unsigned char* values;                 // [kSection][row bytes] of the pool
  float* score;                          // [rows][kSection]
  float* value;                          // [rows][depth], unnormalised
  float* most;                           // [rows] maximum so far
  float* total;                          // [rows] sum of weights so far
  float* keep;                           // [rows] factor of what was there, this section
  float* take;                           // [rows] factor of this section

  static std::size_t rows_padded(int group) {
    return static_cast<std::size_t>(round_up(kQueryBlock * group, kRowStep) + kRowStep);
  }

  // Of the KV heads of one call.
  static std::size_t row_bytes_max(int head_dim) {
    return static_cast<std::size_t>(kQueryBlock) * static_cast<std::size_t>(head_dim) *
           sizeof(typename Flavour::Weight);
  }

  static std::size_t bytes(int group, int head_dim) {
    const std::size_t rows = rows_padded(group);
    const auto depth = static_cast<std::size_t>(round_up(head_dim, kDepthStep));
    const auto section = static_cast<std::size_t>(kSection);
    const std::size_t panel = (depth > section ? depth : section) * kPanel;
    return rows * (depth + section) * sizeof(*q) + panel * sizeof(*panel_type()) +
           section * 2 * row_bytes_max(head_dim) + rows * (section + depth + 4) * sizeof(float) +
           16 * 64;
  }

  AttentionScratch(void* memory, int group, int head_dim) {
    const std::size_t rows = rows_padded(group);
    const auto depth = static_cast<std::size_t>(round_up(head_dim, kDepthStep));
    const auto section = static_cast<std::size_t>(kSection);
    auto* at = static_cast<unsigned char*>(memory);
    take_array(at, q, rows * depth);
    take_array(at, weight, rows * section);
    take_array(at, panel, (depth > section ? depth : section) * kPanel);
    take_array(at, keys, section * row_bytes_max(head_dim));
    take_array(at, values, section * row_bytes_max(head_dim));
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

// Copies, and asks for the same stretch `ahead`.
inline void copy_ahead(unsigned char* to, const unsigned char* from, std::size_t bytes,
                       const unsigned char* ahead) {
  std::size_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(ahead + i, 0, 2);
    store(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  }
  __builtin_memcpy(to + i, from + i, bytes - i);
}

// Rows of `row_bytes` of a run of tokens, out of the pool into dense rows.
inline void copy_run(unsigned char* to, const unsigned char* from, std::ptrdiff_t tokens,
                     std::size_t token_bytes, std::size_t row_bytes, const unsigned char* ahead) {
  const auto count = static_cast<std::size_t>(tokens);
  if (row_bytes == token_bytes) return copy_ahead(to, from, count * row_bytes, ahead);
  for (std::size_t i = 0; i < count; ++i) {
    copy_ahead(to + i * row_bytes, from + i * token_bytes, row_bytes, ahead + i * token_bytes);
  }
}

// Copies keys and values of tokens begin .. begin + count - 1; `t` then finds them in the copy.
inline void stage(const Attention& t, std::ptrdiff_t begin, std::ptrdiff_t count,
                  std::size_t row_bytes, unsigned char* keys, unsigned char* values) {
  const std::ptrdiff_t end = t.position + t.queries;
  for (std::ptrdiff_t done = 0; done < count;) {
    const std::ptrdiff_t token = begin + done;
    const int in_block = static_cast<int>(token) % t.kv.block_tokens;
    const std::ptrdiff_t run = lesser(t.kv.block_tokens - in_block, count - done);
    const unsigned char* from = key_of(t.kv, token);
    const unsigned char* ahead = from;
    if (token + run < end) {
      ahead = key_of(t.kv, token + run);
    } else if (t.next != nullptr) {
      ahead = key_of(*t.next, 0);
    }
    const std::size_t at = static_cast<std::size_t>(done) * row_bytes;
    copy_run(keys + at, from, run, t.kv.token_bytes, row_bytes, ahead);
    copy_run(values + at, from + t.kv.value_offset_bytes, run, t.kv.token_bytes, row_bytes,
             ahead + t.kv.value_offset_bytes);
    done += run;
  }
}

// Panel of `count` staged keys of one head, [depth / pair][32][pair]; missing keys and the padding
// of the depth are zero.
template <class Flavour>
inline void pack_keys(const unsigned char* keys, std::size_t row_bytes, std::ptrdiff_t count,
                      std::ptrdiff_t head_dim, std::ptrdiff_t depth,
                      typename Flavour::Weight* panel) {
  const std::ptrdiff_t dwords = head_dim / Flavour::kPair;
  auto* dst = reinterpret_cast<std::uint32_t*>(panel);
  transpose16(keys, row_bytes, lesser(16, count), dwords, dst);
  transpose16(keys + (count > 16 ? 16 * row_bytes : 0), row_bytes, count > 16 ? count - 16 : 0,
              dwords, dst + 16);
  const std::ptrdiff_t padding = (depth - head_dim) / Flavour::kPair * 32 * 4;
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

// Panel of 32 columns of `count` staged values, [padded / pair][32][pair].
template <class Flavour>
inline void pack_values(const unsigned char* values, std::size_t row_bytes, std::ptrdiff_t count,
                        std::ptrdiff_t padded, std::ptrdiff_t columns,
                        typename Flavour::Weight* panel) {
  using Weight = typename Flavour::Weight;
  for (std::ptrdiff_t i = 0; i < padded; i += 2, values += 2 * row_bytes) {
    const auto* a = i < count ? reinterpret_cast<const Weight*>(values) : nullptr;
    const auto* b = i + 1 < count ? reinterpret_cast<const Weight*>(values + row_bytes) : nullptr;
    pack_value_rows(a, b, columns, panel + i * kPanel);
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
  for (std::ptrdiff_t i = visible; i < padded; ++i)
    score[i] = kNegativeInfinity;
  F16 most = load(score);
  for (std::ptrdiff_t i = 16; i < padded; i += 16)
    most = max(most, load(score + i));
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

// The sizes of a call.
struct Course {
  std::ptrdiff_t rows;    // of one KV head
  std::ptrdiff_t depth;   // of a head, padded
  std::size_t row_bytes;  // of a staged token
  float scale;
};

// Scores of `count` staged keys from token `begin` on for the rows of one KV head, then their
// weights.
template <class Flavour>
inline void score_section(const Attention& t, const AttentionScratch<Flavour>& s,
                          const Course& course, std::ptrdiff_t begin, std::ptrdiff_t count) {
  const std::ptrdiff_t padded = round_up(count, kPanel);
  const std::ptrdiff_t depth = course.depth;
  for (std::ptrdiff_t key = 0; key < padded; key += kPanel) {
    pack_keys<Flavour>(s.keys + static_cast<std::size_t>(key) * course.row_bytes, course.row_bytes,
                       lesser(kPanel, count - key), t.head_dim, depth, s.panel);
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

// Folds the values of the same tokens in.
template <class Flavour>
inline void value_section(const Attention& t, const AttentionScratch<Flavour>& s,
                          const Course& course, std::ptrdiff_t begin, std::ptrdiff_t count) {
  const std::ptrdiff_t padded = round_up(count, kPanel);
  alignas(64) float c[Tile<Flavour>::kRows * kPanel];
  for (std::ptrdiff_t column = 0; column < course.depth; column += kPanel) {
    pack_values<Flavour>(
        s.values + static_cast<std::size_t>(column) * sizeof(typename Flavour::Weight),
        course.row_bytes, count, padded, lesser(kPanel, t.head_dim - column), s.panel);
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
    const auto* q =
        static_cast<const Activation*>(t.q) + row / t.group * t.ld_q + row % t.group * t.head_dim;
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
    auto* out =
        static_cast<Activation*>(t.out) + row / t.group * t.ld_out + row % t.group * t.head_dim;
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
  const std::ptrdiff_t columns = head * t.head_dim * t.group;
  Attention one = t;
  one.q = static_cast<const Activation*>(t.q) + columns;
  one.out = static_cast<Activation*>(t.out) + columns;
  return one;
}

template <class Flavour>
void attention(const Attention& t) {
  Tile<Flavour>::enter();
  const AttentionScratch<Flavour> s(t.scratch, t.group, t.head_dim);
  const std::size_t head_bytes =
      static_cast<std::size_t>(t.head_dim) * sizeof(typename Flavour::Weight);
  Course course{};
  course.rows = static_cast<std::ptrdiff_t>(t.queries) * t.group;
  course.depth = round_up(t.head_dim, kDepthStep);
  course.row_bytes = static_cast<std::size_t>(t.kv_heads) * head_bytes;
  course.scale = 1.0F / __builtin_sqrtf(static_cast<float>(t.head_dim));
  const std::ptrdiff_t keys = t.position + t.queries;
  for (std::ptrdiff_t begin = 0; begin < keys; begin += kSection) {
    const std::ptrdiff_t count = lesser(kSection, keys - begin);
    stage(t, begin, count, course.row_bytes, s.keys, s.values);
    for (std::ptrdiff_t head = 0; head < t.kv_heads; ++head) {
      const Attention one = of_head<Flavour>(t, head);
      auto part = s.from(head * course.rows, course.depth);
      part.keys += static_cast<std::size_t>(head) * head_bytes;
      part.values += static_cast<std::size_t>(head) * head_bytes;
      if (begin == 0) begin_head(one, part, course);
      score_section(one, part, course, begin, count);
      value_section(one, part, course, begin, count);
      if (begin + kSection >= keys) end_head(one, part, course);
    }
  }
}

}  // namespace
}  // namespace superinfer::cpu

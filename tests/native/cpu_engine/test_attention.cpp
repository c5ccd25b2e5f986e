// Attention of every kernel set this CPU runs against plain loops in double, over pools that are
// poisoned with NaN; and that a query's result is the same bits alone and in a block, in any block
// size and with the heads together or apart.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "values.h"

using namespace superinfer::cpu;

namespace {

struct World {
  const Kernels& kernels;
  int tokens;
  int kv_heads;
  int group;
  int head_dim;
  std::vector<float> q;  // [tokens][kv_heads * group][head_dim], as stored
  std::vector<float> k;  // [tokens][kv_heads][head_dim], as stored
  std::vector<float> v;
  Buffer activations;
  int columns() const { return kv_heads * group * head_dim; }
};

World make_world(const Kernels& kernels, int tokens, int kv_heads, int group, int head_dim) {
  World w{kernels, tokens, kv_heads, group, head_dim, {}, {}, {}, {}};
  Dice dice(static_cast<std::uint64_t>(tokens + head_dim));
  const auto kv = static_cast<std::size_t>(tokens * kv_heads * head_dim);
  w.q = dice.floats(static_cast<std::size_t>(tokens * w.columns()), 2.0F);
  w.k = dice.floats(kv);
  w.v = dice.floats(kv);
  w.activations = Buffer(w.q.size() * kernels.activation_bytes);
  for (std::size_t i = 0; i < w.q.size(); ++i) {
    w.q[i] = put(w.activations.as<void>(), static_cast<std::ptrdiff_t>(i), w.q[i],
                 kernels.activation_bytes);
  }
  return w;
}

// One layer's pool with blocks in reverse order, everything unwritten a NaN.
struct PoolOf {
  PoolOf(World& w, int block_tokens_count) : block_tokens(block_tokens_count) {
    const std::size_t element = element_bytes(w.kernels.dtype);
    const int row = w.kv_heads * w.head_dim;
    const int blocks = (w.tokens + block_tokens - 1) / block_tokens;
    const std::size_t half = static_cast<std::size_t>(block_tokens * row) * element;
    memory = Buffer(half * 2 * static_cast<std::size_t>(blocks + 1));
    std::memset(memory.as<void>(), 0xff, memory.bytes());
    for (int i = 0; i < blocks; ++i)
      slots.push_back(blocks - 1 - i);
    for (int t = 0; t < w.tokens; ++t) {
      const int slot = slots[static_cast<std::size_t>(t / block_tokens)];
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(slot) * 2 * block_tokens * row +
                                static_cast<std::ptrdiff_t>(t % block_tokens) * row;
      for (int i = 0; i < row; ++i) {
        const auto from = static_cast<std::size_t>(t * row + i);
        w.k[from] = put(memory.as<void>(), at + i, w.k[from], element);
        w.v[from] = put(memory.as<void>(), at + block_tokens * row + i, w.v[from], element);
      }
    }
    place.pool = memory.as<unsigned char>();
    place.block_bytes = half * 2;
    place.value_offset_bytes = half;
    place.token_bytes = half / static_cast<std::size_t>(block_tokens);
    place.block_tokens = block_tokens;
    place.slots = slots.data();
  }

  int block_tokens;
  Buffer memory;
  std::vector<std::int32_t> slots;
  KvPlace place;
};

// Queries position .. position + queries - 1 for KV heads head .. head + heads - 1.
void attend(const World& w, const PoolOf& pool, int position, int queries, int head, int heads,
            Buffer& out) {
  Buffer scratch(w.kernels.attention_scratch_bytes(w.group, w.head_dim));
  std::memset(scratch.as<void>(), 0xff, scratch.bytes());
  const std::size_t element = w.kernels.activation_bytes;
  const auto at =
      static_cast<std::size_t>(position * w.columns() + head * w.group * w.head_dim) * element;
  Attention a;
  a.q = w.activations.as<unsigned char>() + at;
  a.ld_q = w.columns();
  a.out = out.as<unsigned char>() + at;
  a.ld_out = w.columns();
  a.queries = queries;
  a.position = position;
  a.kv_heads = heads;
  a.group = w.group;
  a.head_dim = w.head_dim;
  a.kv = pool.place;
  a.kv.pool += static_cast<std::size_t>(head * w.head_dim) * element_bytes(w.kernels.dtype);
  a.next = &pool.place;
  a.scratch = scratch.as<void>();
  w.kernels.attention(a);
}

std::vector<double> exact(const World& w, int position, int query_head) {
  const int head = query_head / w.group;
  const auto dim = static_cast<std::size_t>(w.head_dim);
  const float* q = w.q.data() + position * w.columns() + query_head * w.head_dim;
  std::vector<double> score;
  for (int t = 0; t <= position; ++t) {
    const float* k = w.k.data() + (t * w.kv_heads + head) * w.head_dim;
    double dot = 0.0;
    for (std::size_t i = 0; i < dim; ++i)
      dot += static_cast<double>(q[i]) * static_cast<double>(k[i]);
    score.push_back(dot / std::sqrt(static_cast<double>(w.head_dim)));
  }
  const double most = *std::max_element(score.begin(), score.end());
  double total = 0.0;
  for (double& s : score)
    total += (s = std::exp(s - most));
  std::vector<double> out(dim, 0.0);
  for (int t = 0; t <= position; ++t) {
    const float* v = w.v.data() + (t * w.kv_heads + head) * w.head_dim;
    const double weight = score[static_cast<std::size_t>(t)] / total;
    for (std::size_t i = 0; i < dim; ++i)
      out[i] += weight * static_cast<double>(v[i]);
  }
  return out;
}

void test_world(const Kernels& kernels, int tokens, int kv_heads, int group, int head_dim) {
  World w = make_world(kernels, tokens, kv_heads, group, head_dim);
  const PoolOf pool(w, 16);
  const PoolOf small(w, 3);
  const std::size_t bytes = w.q.size() * kernels.activation_bytes;
  Buffer alone(bytes);
  for (int t = 0; t < tokens; ++t)
    attend(w, pool, t, 1, 0, kv_heads, alone);
  const double tolerance = kernels.activation_bytes == 2 ? 2e-2 : 1e-5;
  for (const int t : {0, 1, 15, 16, tokens / 2, tokens - 1}) {
    if (t >= tokens) continue;
    for (int head = 0; head < kv_heads * group; ++head) {
      const std::vector<double> expected = exact(w, t, head);
      for (int i = 0; i < head_dim; ++i) {
        const double found = static_cast<double>(
            get(alone.as<void>(), t * w.columns() + head * head_dim + i, kernels.activation_bytes));
        CHECK(std::abs(found - expected[static_cast<std::size_t>(i)]) <= tolerance);
      }
    }
  }
  for (const int queries : {kQueryBlock, 7}) {
    Buffer together(bytes);
    for (int t = 0; t < tokens; t += queries) {
      for (int head = 0; head < kv_heads; ++head) {
        attend(w, queries == 7 ? small : pool, t, std::min(queries, tokens - t), head, 1, together);
      }
    }
    CHECK(std::memcmp(alone.as<void>(), together.as<void>(), bytes) == 0);
  }
}

}  // namespace

int main() {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    for (const Kernels* kernels : supported_kernels(dtype)) {
      std::printf("%s %s\n", kernels->name, dtype == Dtype::kBf16 ? "bf16" : "fp32");
      test_world(*kernels, 300, 3, 3, 64);
      test_world(*kernels, 40, 1, 8, 128);
      test_world(*kernels, 150, 2, 1, 24);
      test_world(*kernels, 1, 2, 5, 8);
      test_world(*kernels, 20, 1, 2, 256);
    }
  }
  return 0;
}

// Engines that share a model: each has its heads and its columns of the MLP, and the sums of all of
// them are asked for between half-layers. Made to be run under the sanitizers.
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "engine.h"

using namespace superinfer::cpu;

namespace {

constexpr int kBlocks = 8;

Shape whole_shape(int experts) {
  Shape shape;
  shape.layers = 2;
  shape.hidden = 40;
  shape.intermediate = 56;
  shape.heads = 6;
  shape.kv_heads = 3;
  shape.head_dim = 16;
  shape.vocabulary = 75;
  shape.context_tokens_max = 128;
  shape.experts = experts;
  shape.experts_per_token = experts > 0 ? 2 : 0;
  shape.block_tokens = 8;
  shape.tied_embedding = true;
  return shape;
}

// A part of the whole: rows or columns first .. first + count - 1 of a matrix of the model.
struct Cut {
  int first = 0;
  int count = 0;
};

struct Share {
  Shape shape;
  Cut query;
  Cut key;
  Cut mlp;
};

// One KV head and 24 columns for rank 0, the rest for rank 1; all of it for a rank that is alone.
Share share_of(const Shape& whole, int rank, int ranks) {
  Share share{whole, {0, whole.query_columns()}, {0, whole.kv_columns()}, {0, whole.intermediate}};
  if (ranks == 1) return share;
  const int kv_heads = rank == 0 ? 1 : whole.kv_heads - 1;
  const int first = rank == 0 ? 0 : 1;
  const int width = whole.group() * whole.head_dim;
  share.query = {first * width, kv_heads * width};
  share.key = {first * whole.head_dim, kv_heads * whole.head_dim};
  share.mlp = rank == 0 ? Cut{0, 24} : Cut{24, whole.intermediate - 24};
  share.shape.kv_heads = kv_heads;
  share.shape.heads = kv_heads * whole.group();
  share.shape.intermediate = share.mlp.count;
  return share;
}

void load(Engine& engine, const char* part, int layer, int expert, int rows, int columns,
          Cut row_cut, Cut column_cut) {
  Dice dice(static_cast<std::uint64_t>(part[0] * 64 + part[1] + layer * 7 + expert * 3));
  const auto data = dice.floats(static_cast<std::size_t>(rows * columns), 0.3F);
  std::vector<float> cut;
  for (int row = row_cut.first; row < row_cut.first + row_cut.count; ++row) {
    const auto begin = data.begin() + row * columns + column_cut.first;
    cut.insert(cut.end(), begin, begin + column_cut.count);
  }
  engine.load(part, layer, expert, cut.data(), row_cut.count, column_cut.count);
}

void load_all(Engine& engine, const Share& share, const Shape& whole) {
  const int hidden = whole.hidden;
  const Cut all{0, hidden};
  const std::vector<float> ones(static_cast<std::size_t>(hidden), 1.0F);
  load(engine, "embedding", -1, 0, whole.vocabulary, hidden, {0, whole.vocabulary}, all);
  engine.load("norm", -1, 0, ones.data(), 1, hidden);
  for (int layer = 0; layer < whole.layers; ++layer) {
    engine.load("attention_norm", layer, 0, ones.data(), 1, hidden);
    engine.load("mlp_norm", layer, 0, ones.data(), 1, hidden);
    load(engine, "q", layer, 0, whole.query_columns(), hidden, share.query, all);
    load(engine, "k", layer, 0, whole.kv_columns(), hidden, share.key, all);
    load(engine, "v", layer, 0, whole.kv_columns(), hidden, share.key, all);
    load(engine, "o", layer, 0, hidden, whole.query_columns(), all, share.query);
    if (whole.experts > 0) {
      load(engine, "router", layer, 0, whole.experts, hidden, {0, whole.experts}, all);
    }
    for (int expert = 0; expert < std::max(whole.experts, 1); ++expert) {
      load(engine, "gate", layer, expert, whole.intermediate, hidden, share.mlp, all);
      load(engine, "up", layer, expert, whole.intermediate, hidden, share.mlp, all);
      load(engine, "down", layer, expert, hidden, whole.intermediate, all, share.mlp);
    }
  }
  std::vector<float> inverse;
  for (int i = 0; i < whole.head_dim / 2; ++i)
    inverse.push_back(std::pow(1e4F, -static_cast<float>(i) / 8));
  engine.set_frequencies(inverse.data(), whole.head_dim / 2);
  engine.finish();
}

StepInput prompt_and_decode(int position) {
  StepInput input;
  const auto add = [&](int start, int count, std::vector<std::int32_t> slots) {
    for (int i = 0; i < count; ++i)
      input.tokens.push_back((start + i) * 11 % 75);
    input.slots.insert(input.slots.end(), slots.begin(), slots.end());
    RowInput row;
    row.start = start;
    row.count = count;
    row.slots = static_cast<int>(slots.size());
    row.sample = true;
    input.rows.push_back(row);
  };
  add(0, 5 + position, {4, 1});
  add(position, 1, {2, 3});
  return input;
}

// Logits of all steps, by rank.
std::vector<std::vector<float>> run(const Shape& whole, Dtype dtype, int ranks, int threads) {
  std::barrier<> meeting(ranks);
  std::vector<std::vector<float>> parts(static_cast<std::size_t>(ranks));
  std::vector<std::vector<float>> logits(static_cast<std::size_t>(ranks));
  std::vector<int> reductions(static_cast<std::size_t>(ranks), 0);
  const auto one = [&](int rank) {
    const auto me = static_cast<std::size_t>(rank);
    const Share share = share_of(whole, rank, ranks);
    Buffer memory(Engine::block_bytes(share.shape, dtype) * kBlocks);
    std::memset(memory.as<void>(), 0xff, memory.bytes());
    Engine engine(share.shape, dtype, memory.as<unsigned char>(), kBlocks, threads, "auto");
    load_all(engine, share, whole);
    if (ranks > 1) {
      engine.set_reduce([&, me](float* partial, std::ptrdiff_t count) {
        ++reductions[me];
        parts[me].assign(partial, partial + count);
        meeting.arrive_and_wait();
        for (std::ptrdiff_t i = 0; i < count; ++i) {
          const auto at = static_cast<std::size_t>(i);
          partial[i] = parts[0][at] + parts[1][at];
        }
        meeting.arrive_and_wait();
      });
    }
    engine.set_keep_logits(true);
    for (int position = 0; position < 6; ++position) {
      engine.launch(prompt_and_decode(position));
      const std::size_t sampled = engine.collect().size();
      for (std::size_t i = 0; i < sampled; ++i) {
        logits[me].insert(logits[me].end(), engine.logits(i), engine.logits(i) + whole.vocabulary);
      }
    }
    engine.launch(StepInput{});  // of nothing there is nothing to sum
    CHECK(engine.collect().empty());
    CHECK(ranks == 1 || reductions[me] == 6 * 2 * whole.layers);
  };
  std::vector<std::thread> members;
  for (int rank = 0; rank < ranks; ++rank)
    members.emplace_back(one, rank);
  for (std::thread& member : members)
    member.join();
  return logits;
}

void test_shares(Dtype dtype, int experts) {
  const Shape whole = whole_shape(experts);
  const auto alone = run(whole, dtype, 1, 2);
  const auto shared = run(whole, dtype, 2, 2);
  const auto narrow = run(whole, dtype, 2, 1);
  CHECK(shared[0] == shared[1]);  // the same bits on each rank, whatever its threads
  CHECK(shared[0] == narrow[0]);
  float most = 0.0F;
  float largest = 0.0F;
  for (std::size_t i = 0; i < alone[0].size(); ++i) {
    most = std::max(most, std::abs(shared[0][i] - alone[0][i]));
    largest = std::max(largest, std::abs(alone[0][i]));
  }
  CHECK(largest > 0.1F);
  CHECK(most <= largest * (dtype == Dtype::kFp32 ? 1e-5F : 5e-2F));
}

// What a reduction throws comes out of collect(), once; the step ends and the engine goes on.
void test_failure() {
  const Shape whole = whole_shape(0);
  Buffer memory(Engine::block_bytes(whole, Dtype::kFp32) * kBlocks);
  Engine engine(whole, Dtype::kFp32, memory.as<unsigned char>(), kBlocks, 2, "auto");
  load_all(engine, share_of(whole, 0, 1), whole);
  int calls = 0;
  engine.set_reduce([&](float*, std::ptrdiff_t) {
    if (++calls == 2) throw std::runtime_error("nobody there");
  });
  engine.launch(prompt_and_decode(3));
  bool told = false;
  try {
    engine.collect();
  } catch (const std::runtime_error& error) {
    told = std::strcmp(error.what(), "nobody there") == 0;
  }
  CHECK(told && calls == 2);
  engine.launch(prompt_and_decode(3));
  CHECK(engine.collect().size() == 2 && calls == 2 + 2 * whole.layers);
  engine.set_reduce({});
  engine.launch(prompt_and_decode(3));
  CHECK(engine.collect().size() == 2 && calls == 2 + 2 * whole.layers);
}

}  // namespace

int main() {
  test_failure();
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    test_shares(dtype, 0);
    test_shares(dtype, 4);
  }
  return 0;
}

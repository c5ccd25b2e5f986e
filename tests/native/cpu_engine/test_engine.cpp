// The engine as a whole, small: threads and compositions change no bit, the door refuses, sampling
// is deterministic. Made to be run under the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "check.h"
#include "engine.h"

using namespace superinfer::cpu;

namespace {

Shape small_shape(int experts) {
  Shape shape;
  shape.layers = 2;
  shape.hidden = 40;
  shape.intermediate = 56;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 16;
  shape.vocabulary = 75;
  shape.context_tokens_max = 256;
  shape.experts = experts;
  shape.experts_per_token = experts > 0 ? 2 : 0;
  shape.block_tokens = 8;
  shape.qkv_bias = experts == 0;
  shape.tied_embedding = experts == 0;
  return shape;
}

void load_matrix(Engine& engine, const char* part, int layer, int expert, int rows, int columns) {
  Dice dice(static_cast<std::uint64_t>(part[0] * 64 + part[1] + layer * 7 + expert * 3));
  const auto data = dice.floats(static_cast<std::size_t>(rows * columns), 0.3F);
  engine.load(part, layer, expert, data.data(), rows, columns);
}

void load_all(Engine& engine) {
  const Shape& s = engine.shape();
  const std::vector<float> ones(static_cast<std::size_t>(s.hidden), 1.0F);
  load_matrix(engine, "embedding", -1, 0, s.vocabulary, s.hidden);
  if (!s.tied_embedding) load_matrix(engine, "head", -1, 0, s.vocabulary, s.hidden);
  engine.load("norm", -1, 0, ones.data(), 1, s.hidden);
  for (int layer = 0; layer < s.layers; ++layer) {
    engine.load("attention_norm", layer, 0, ones.data(), 1, s.hidden);
    engine.load("mlp_norm", layer, 0, ones.data(), 1, s.hidden);
    load_matrix(engine, "q", layer, 0, s.query_columns(), s.hidden);
    load_matrix(engine, "k", layer, 0, s.kv_columns(), s.hidden);
    load_matrix(engine, "v", layer, 0, s.kv_columns(), s.hidden);
    if (s.qkv_bias) {
      load_matrix(engine, "q_bias", layer, 0, 1, s.query_columns());
      load_matrix(engine, "k_bias", layer, 0, 1, s.kv_columns());
      load_matrix(engine, "v_bias", layer, 0, 1, s.kv_columns());
    }
    load_matrix(engine, "o", layer, 0, s.hidden, s.query_columns());
    if (s.experts > 0) load_matrix(engine, "router", layer, 0, s.experts, s.hidden);
    for (int expert = 0; expert < (s.experts > 0 ? s.experts : 1); ++expert) {
      load_matrix(engine, "gate", layer, expert, s.intermediate, s.hidden);
      load_matrix(engine, "up", layer, expert, s.intermediate, s.hidden);
      load_matrix(engine, "down", layer, expert, s.hidden, s.intermediate);
    }
  }
  std::vector<float> inverse;
  for (int i = 0; i < s.head_dim / 2; ++i)
    inverse.push_back(std::pow(1e4F, -static_cast<float>(i) / 8));
  engine.set_frequencies(inverse.data(), s.head_dim / 2);
  engine.finish();
}

void add_row(StepInput& input, int start, int count, const std::vector<std::int32_t>& slots,
             const Choice& choice) {
  for (int i = 0; i < count; ++i)
    input.tokens.push_back((start + i) * 11 % 75);
  input.slots.insert(input.slots.end(), slots.begin(), slots.end());
  RowInput row;
  row.start = start;
  row.count = count;
  row.slots = static_cast<int>(slots.size());
  row.sample = true;
  row.choice = choice;
  input.rows.push_back(row);
}

std::vector<float> run(Engine& engine, StepInput input, std::vector<Drawn>* drawn = nullptr) {
  engine.set_keep_logits(true);
  engine.launch(std::move(input));
  std::vector<Drawn> result = engine.collect();
  if (drawn != nullptr) *drawn = result;
  const auto vocabulary = static_cast<std::size_t>(engine.shape().vocabulary);
  std::vector<float> all;
  for (std::size_t i = 0; i < result.size(); ++i) {
    all.insert(all.end(), engine.logits(i), engine.logits(i) + vocabulary);
  }
  return all;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_exact(Dtype dtype, int experts) {
  const Shape shape = small_shape(experts);
  Buffer memory(Engine::block_bytes(shape, dtype) * 16);
  std::vector<float> first;
  std::vector<Drawn> first_drawn;
  for (const int threads : {1, 2, 4}) {
    std::memset(memory.as<void>(), 0xff, memory.bytes());
    Engine engine(shape, dtype, memory.as<unsigned char>(), 16, threads, "auto");
    load_all(engine);
    const Choice dice{0.9F, 0, 0.9, 5, 2, 3};
    StepInput whole;
    add_row(whole, 0, 33, {4, 1, 9, 0, 7}, dice);
    std::vector<Drawn> drawn;
    const std::vector<float> expected = run(engine, std::move(whole), &drawn);
    CHECK(drawn[0].top.size() == 3);
    if (threads == 1) {
      first = expected;
      first_drawn = drawn;
    }
    CHECK(same(first, expected));
    CHECK(drawn[0].token == first_drawn[0].token && drawn[0].top == first_drawn[0].top);
    StepInput part;
    add_row(part, 0, 20, {2, 3, 5, 6, 8}, {});
    add_row(part, 0, 3, {10}, {});
    run(engine, std::move(part));
    for (int t = 20; t < 32; ++t) {
      StepInput step;
      add_row(step, 0, 3, {10}, dice);
      add_row(step, t, 1, {2, 3, 5, 6, 8}, {});
      run(engine, std::move(step));
    }
    StepInput last;
    add_row(last, 32, 1, {2, 3, 5, 6, 8}, dice);
    CHECK(same(first, run(engine, std::move(last))));
  }
}

void test_door() {
  const Shape shape = small_shape(0);
  Buffer memory(Engine::block_bytes(shape, Dtype::kBf16) * 4);
  Engine engine(shape, Dtype::kBf16, memory.as<unsigned char>(), 4, 2, "auto");
  const auto refused = [&](StepInput input) {
    try {
      engine.launch(std::move(input));
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  StepInput early;
  add_row(early, 0, 3, {0}, {});
  CHECK(refused(early));  // weights are missing
  load_all(engine);
  StepInput outside = early;
  outside.slots[0] = 4;
  CHECK(refused(outside));
  StepInput unknown = early;
  unknown.tokens[1] = 75;
  CHECK(refused(unknown));
  StepInput uncovered;
  add_row(uncovered, 6, 3, {0}, {});
  CHECK(refused(uncovered));
  StepInput stray = early;
  stray.tokens.push_back(1);
  CHECK(refused(stray));
  engine.launch(early);
  try {
    engine.launch(early);
    CHECK(false);
  } catch (const std::logic_error&) {
    CHECK(engine.collect().size() == 1);
  }
  engine.launch(StepInput{});
  CHECK(engine.collect().empty());
  engine.launch(early);  // not collected: the destructor waits
}

// Each rule where its effect is known: a token taken from the front, one forbidden, a stray
// history.
void test_penalties() {
  const Shape shape = small_shape(0);
  Buffer memory(Engine::block_bytes(shape, Dtype::kFp32) * 4);
  Engine engine(shape, Dtype::kFp32, memory.as<unsigned char>(), 4, 2, "auto");
  load_all(engine);
  StepInput plain;
  add_row(plain, 0, 3, {0}, {});
  const std::vector<float> logits = run(engine, plain);
  const auto order = [&](std::size_t rank) {
    std::vector<std::int32_t> ids(logits.size());
    for (std::size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<std::int32_t>(i);
    std::sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    return ids[rank];
  };
  engine.set_keep_logits(false);
  const auto token = [&](StepInput input) {
    engine.launch(std::move(input));
    return engine.collect()[0].token;
  };
  CHECK(token(plain) == order(0));
  StepInput forbidden = plain;
  forbidden.forbidden = {order(0), order(1)};
  forbidden.rows[0].forbidden = 2;
  CHECK(token(forbidden) == order(2));
  StepInput once = plain;
  once.rows[0].choice.presence = 1000.0F;
  once.rows[0].choice.index = 1;  // the last of the history is output, the others are prompt
  once.rows[0].history = 3;
  once.history = {order(1), order(2), order(0)};
  CHECK(token(once) == order(1));
  CHECK(token(once) == order(1));  // the marks of the first time are gone
  StepInput often = once;
  often.rows[0].choice.index = 3;
  often.rows[0].choice.presence = 0.0F;
  often.rows[0].choice.frequency = 1000.0F;
  often.history = {order(1), order(0), order(0)};
  CHECK(token(often) == order(2));
  often.rows[0].history = 2;
  try {
    engine.launch(often);
    CHECK(false);
  } catch (const std::invalid_argument&) {
  }
}

void test_dice() {
  double sum = 0.0;
  for (std::uint64_t i = 0; i < 4096; ++i) {
    const double u = uniform(9, i);
    CHECK(u >= 0.0 && u < 1.0);
    CHECK(u == uniform(9, i) && u != uniform(10, i));
    sum += u;
  }
  CHECK(std::abs(sum / 4096 - 0.5) < 0.02);
}

}  // namespace

int main() {
  test_dice();
  test_door();
  test_penalties();
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    test_exact(dtype, 0);
    test_exact(dtype, 4);
  }
  return 0;
}

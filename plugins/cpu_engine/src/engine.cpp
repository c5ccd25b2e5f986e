// The door (validation), the buffers and the life of a step; what a step does is in
// engine_step.cpp.
#include "engine.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace superinfer::cpu {
namespace {

std::size_t size_of(std::ptrdiff_t rows, std::ptrdiff_t columns, std::size_t element) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * element;
}

[[noreturn]] void refuse(std::size_t row, const std::string& what) {
  throw std::invalid_argument("row " + std::to_string(row) + ": " + what);
}

std::ptrdiff_t positions_of(const Shape& shape, std::ptrdiff_t blocks) {
  return std::min<std::ptrdiff_t>(shape.context_tokens_max, blocks * shape.block_tokens);
}

}  // namespace

std::size_t Engine::block_bytes(const Shape& shape, Dtype dtype) {
  return static_cast<std::size_t>(shape.layers) * 2 * shape.block_elements() * element_bytes(dtype);
}

Engine::Engine(const Shape& shape, Dtype dtype, unsigned char* pool, std::ptrdiff_t blocks,
               int threads, const std::string& kernels)
    : kernels_(select_kernels(kernels, dtype)),
      model_(shape, dtype, kernels_.packed_rows_max > 0),
      dtype_(dtype),
      pool_(pool),
      blocks_(blocks),
      team_(threads) {
  if (blocks < 1 || blocks > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("pool: must hold at least one block");
  }
  const std::size_t scratch = kernels_.attention_scratch_bytes(shape.group(), shape.head_dim);
  for (int thread = 0; thread < threads; ++thread) {
    attention_scratch_.emplace_back(scratch);
    sample_scratch_.emplace_back();
  }
}

Engine::~Engine() {
  close();
}

void Engine::load(const std::string& part, int layer, int expert, const float* data,
                  std::ptrdiff_t rows, std::ptrdiff_t columns) {
  if (running_) throw std::logic_error("a step is under way");
  model_.load(team_, part, layer, expert, data, rows, columns);
}

void Engine::set_frequencies(const float* inverse, std::ptrdiff_t count) {
  model_.set_frequencies(inverse, count, positions_of(model_.shape(), blocks_));
}

void Engine::set_reduce(Reduce reduce) {
  if (running_) throw std::logic_error("a step is under way");
  reduce_ = std::move(reduce);
}

void Engine::validate(const StepInput& input) const {
  const Shape& s = model_.shape();
  std::size_t tokens = 0;
  std::size_t slots = 0;
  for (std::size_t i = 0; i < input.rows.size(); ++i) {
    const RowInput& row = input.rows[i];
    if (row.count < 1) refuse(i, "tokens: must not be empty");
    if (row.start < 0 || row.count > s.context_tokens_max - row.start) {
      refuse(i, "positions " + std::to_string(row.start) + " + " + std::to_string(row.count) +
                    " are outside the context of " + std::to_string(s.context_tokens_max));
    }
    const std::int64_t end = static_cast<std::int64_t>(row.start) + row.count;
    if (row.slots < 0 || static_cast<std::int64_t>(row.slots) * s.block_tokens < end) {
      refuse(i,
             std::to_string(row.slots) + " slots do not cover " + std::to_string(end) + " tokens");
    }
    tokens += static_cast<std::size_t>(row.count);
    slots += static_cast<std::size_t>(row.slots);
    if (tokens > input.tokens.size() || slots > input.slots.size()) {
      refuse(i, "tokens or slots are missing");
    }
    for (std::size_t t = tokens - static_cast<std::size_t>(row.count); t < tokens; ++t) {
      if (input.tokens[t] < 0 || input.tokens[t] >= s.vocabulary) {
        refuse(i, "token " + std::to_string(input.tokens[t]) + " is outside the vocabulary of " +
                      std::to_string(s.vocabulary));
      }
    }
    for (std::size_t t = slots - static_cast<std::size_t>(row.slots); t < slots; ++t) {
      if (input.slots[t] < 0 || input.slots[t] >= blocks_) {
        refuse(i, "slot " + std::to_string(input.slots[t]) + " is outside the pool of " +
                      std::to_string(blocks_) + " blocks");
      }
    }
  }
  if (tokens != input.tokens.size() || slots != input.slots.size()) {
    throw std::invalid_argument("tokens or slots belong to no row");
  }
  validate_sampling(input);
}

void Engine::validate_sampling(const StepInput& input) const {
  const int vocabulary = model_.shape().vocabulary;
  std::size_t history = 0;
  std::size_t forbidden = 0;
  for (std::size_t i = 0; i < input.rows.size(); ++i) {
    const RowInput& row = input.rows[i];
    if (row.history < 0 || row.forbidden < 0) refuse(i, "history or forbidden: must be 0 or more");
    if (row.sample && row.choice.penalises() && row.history != row.start + row.count) {
      refuse(i, "history: penalties need all " + std::to_string(row.start + row.count) +
                    " tokens so far, not " + std::to_string(row.history));
    }
    if (row.history > 0 && row.choice.index > static_cast<std::uint64_t>(row.history)) {
      refuse(i, "history: is shorter than the output");
    }
    // Rows name an id once, so fewer than the vocabulary leave something to choose.
    if (row.forbidden >= vocabulary) refuse(i, "forbidden: is the whole vocabulary");
    history += static_cast<std::size_t>(row.history);
    forbidden += static_cast<std::size_t>(row.forbidden);
  }
  if (history != input.history.size() || forbidden != input.forbidden.size()) {
    throw std::invalid_argument("history or forbidden ids are missing or belong to no row");
  }
  const auto outside = [&](std::int32_t id) { return id < 0 || id >= vocabulary; };
  if (std::ranges::any_of(input.history, outside) ||
      std::ranges::any_of(input.forbidden, outside)) {
    throw std::invalid_argument("history or forbidden: an id is outside the vocabulary of " +
                                std::to_string(vocabulary));
  }
}

void Engine::prepare() {
  tokens_.clear();
  attention_.blocks.clear();
  last_attention_.blocks.clear();
  sampled_.clear();
  seen_.clear();
  const std::int32_t* id = input_.tokens.data();
  const std::int32_t* slots = input_.slots.data();
  const std::int32_t* history = input_.history.data();
  const std::int32_t* forbidden = input_.forbidden.data();
  for (std::size_t i = 0; i < input_.rows.size(); ++i) {
    const RowInput& row = input_.rows[i];
    for (int t = 0; t < row.count; ++t) {
      if (t % kQueryBlock == 0) {
        const std::ptrdiff_t first = std::ssize(tokens_);
        attention_.blocks.push_back({first, std::min(kQueryBlock, row.count - t), first});
      }
      tokens_.push_back({id[t], row.start + t, slots});
    }
    if (row.sample) {
      last_attention_.blocks.push_back({std::ssize(tokens_) - 1, 1, std::ssize(sampled_)});
      sampled_.push_back(i);
      const auto output = row.history > 0 ? static_cast<std::size_t>(row.choice.index) : 0;
      const std::span all(history, static_cast<std::size_t>(row.history));
      seen_.push_back({all.first(all.size() - output),
                       all.last(output),
                       {forbidden, static_cast<std::size_t>(row.forbidden)}});
    }
    id += row.count;
    slots += row.slots;
    history += row.history;
    forbidden += row.forbidden;
  }
  rows_ = std::ssize(tokens_);
  divide_attention(attention_);
  divide_attention(last_attention_);
  reserve_step();
}

// All KV heads of a block in one call read the pool in the order in which it lies in memory; where
// there are too few blocks to go round, or a block has many queries, each head is a call of its
// own.
void Engine::divide_attention(AttentionWork& work) const {
  const int kv_heads = model_.shape().kv_heads;
  const bool enough = std::ssize(work.blocks) >= 4 * static_cast<std::ptrdiff_t>(threads());
  work.items.clear();
  for (std::size_t block = 0; block < work.blocks.size(); ++block) {
    const int together = enough ? std::max(kQueryBlock / work.blocks[block].count, 1) : 1;
    for (int head = 0; head < kv_heads; head += together) {
      work.items.push_back({block, head, std::min(together, kv_heads - head)});
    }
  }
}

void Engine::reserve_step() {
  const Shape& s = model_.shape();
  const std::size_t element = kernels_.activation_bytes;
  const std::ptrdiff_t rows = round_up(std::ssize(tokens_), kRowStep);
  const std::ptrdiff_t hidden = round_up(s.hidden, kDepthStep);
  const std::ptrdiff_t middle = round_up(s.intermediate, kDepthStep);
  hidden_.reserve(size_of(rows, hidden, sizeof(float)));
  if (reduce_) partial_.reserve(size_of(rows, hidden, sizeof(float)));
  normed_.reserve(size_of(rows, hidden, element));
  qkv_.reserve(size_of(rows, round_up(s.qkv_columns(), kPanel), sizeof(float)));
  query_.reserve(size_of(rows, s.query_columns(), element));
  attended_.reserve(size_of(rows, round_up(s.query_columns(), kDepthStep), element));
  std::ptrdiff_t middle_rows = rows;
  if (s.experts > 0) {
    const std::ptrdiff_t chosen = std::ssize(tokens_) * s.experts_per_token;
    // Every expert's rows begin at a multiple of kRowStep.
    middle_rows =
        round_up(chosen, kRowStep) + std::min<std::ptrdiff_t>(chosen, s.experts) * kRowStep;
    router_.reserve(size_of(rows, round_up(s.experts, kPanel), sizeof(float)));
    expert_input_.reserve(size_of(middle_rows, hidden, element));
    expert_output_.reserve(size_of(middle_rows, hidden, sizeof(float)));
    expert_of_.resize(static_cast<std::size_t>(chosen));
    expert_weight_.resize(static_cast<std::size_t>(chosen));
    expert_slot_.resize(static_cast<std::size_t>(chosen));
    expert_rows_.resize(static_cast<std::size_t>(s.experts));
  }
  middle_.reserve(size_of(middle_rows, middle, element));

  const std::ptrdiff_t sampled = std::ssize(sampled_);
  const std::size_t best = static_cast<std::size_t>(sampled) * static_cast<std::size_t>(threads());
  head_input_.reserve(size_of(round_up(sampled, kRowStep), hidden, element));
  best_value_.reserve(best * sizeof(float));
  best_id_.reserve(best * sizeof(std::int32_t));
  std::fill_n(best_value_.as<float>(), best, -std::numeric_limits<float>::infinity());
  std::fill_n(best_id_.as<std::int32_t>(), best, 0);
  drawn_.assign(sampled_.size(), Drawn{});
  logits_of_.assign(sampled_.size(), nullptr);
  std::ptrdiff_t wanted = 0;
  const auto wants = [&](std::size_t index) {
    const Choice& choice = input_.rows[sampled_[index]].choice;
    return keep_logits_ || choice.temperature > 0.0F || choice.logprobs >= 0 ||
           choice.penalises() || !seen_[index].forbidden.empty();
  };
  for (std::size_t i = 0; i < sampled_.size(); ++i)
    wanted += wants(i) ? 1 : 0;
  logits_.reserve(size_of(wanted, s.vocabulary, sizeof(float)));
  float* next = logits_.as<float>();
  for (std::size_t i = 0; i < sampled_.size(); ++i) {
    if (!wants(i)) continue;
    logits_of_[i] = next;
    next += s.vocabulary;
  }
}

void Engine::launch(StepInput input) {
  if (running_) throw std::logic_error("a step is under way");
  validate(input);
  model_.require_complete();
  input_ = std::move(input);
  failure_ = nullptr;
  apart_ = false;
  prepare();
  team_.start([this](int thread) { work(thread); }, stages());
  running_ = true;
}

std::vector<Drawn> Engine::collect() {
  if (!running_) throw std::logic_error("no step is under way");
  team_.wait();
  running_ = false;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  return std::move(drawn_);
}

void Engine::close() noexcept {
  if (running_) team_.wait();
  running_ = false;
}

const float* Engine::logits(std::size_t index) const {
  return !running_ && index < logits_of_.size() ? logits_of_[index] : nullptr;
}

}  // namespace superinfer::cpu

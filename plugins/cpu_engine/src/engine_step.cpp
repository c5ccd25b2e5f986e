// What every thread does in a step. Stages are divided over the threads by Team::share and
// separated by Team::sync; whatever allocates has been done before.
#include <algorithm>
#include <utility>

#include "engine.h"

namespace superinfer::cpu {

unsigned char* Engine::activations(Buffer& buffer, std::ptrdiff_t row, std::ptrdiff_t ld) const {
  return buffer.as<unsigned char>() +
         static_cast<std::size_t>(row * ld) * kernels_.activation_bytes;
}

void Engine::gemm(Path& path, const Matrix& matrix, Gemm g) {
  const Matrix& weights = matrix.stored(reads_packed(g.rows));
  g.weights = weights.data();
  g.storage = weights.storage();
  g.depth = weights.depth();
  const std::size_t panel_bytes = weights.panel_bytes();
  const std::ptrdiff_t end = weights.panels() * (path.thread + 1) / team_.threads();
  share(path, weights.panels(), [&](std::ptrdiff_t panel) {
    g.panel_begin = panel;
    g.panel_end = panel + 1;
    const auto* at = static_cast<const unsigned char*>(g.weights);
    g.next = panel + 1 == end ? nullptr : at + static_cast<std::size_t>(panel + 1) * panel_bytes;
    kernels_.gemm(g);
  });
}

std::size_t Engine::stages() const {
  const std::size_t mlp = model_.shape().experts > 0 ? 6 : 2;
  const std::size_t ranks = reduce_ ? 2 : 0;
  return 1 + model_.layers().size() * (6 + mlp + ranks) + 3;
}

void Engine::work(int thread) noexcept {
  Path path{thread, 0};
  const std::ptrdiff_t ld = round_up(model_.shape().hidden, kDepthStep);
  share(path, std::ssize(tokens_), [&](std::ptrdiff_t row) {
    model_.embed(tokens_[static_cast<std::size_t>(row)].id, hidden_.as<float>() + row * ld);
  });
  team_.sync();
  for (std::size_t layer = 0; layer < model_.layers().size(); ++layer)
    run_layer(path, layer);
  if (!sampled_.empty()) run_head(path);
}

void Engine::norm_rows(Path& path, const std::vector<float>& weight) {
  const Shape& s = model_.shape();
  const std::ptrdiff_t ld = round_up(s.hidden, kDepthStep);
  share(path, rows_, [&](std::ptrdiff_t row) {
    kernels_.norm(hidden_.as<float>() + row * ld, weight.data(), s.hidden, s.norm_eps,
                  activations(normed_, row, ld));
  });
  team_.sync();
}

void Engine::run_layer(Path& path, std::size_t index) {
  const Shape& s = model_.shape();
  const Layer& layer = model_.layers()[index];
  const AttentionWork& attention = is_last(index) ? last_attention_ : attention_;
  const std::ptrdiff_t ld = round_up(s.hidden, kDepthStep);
  norm_rows(path, layer.attention_norm);
  Gemm g;
  g.rows = rows_;
  g.x = normed_.as<void>();
  g.ld_x = ld;
  g.epilogue = Epilogue::kStore;
  g.bias = s.qkv_bias ? layer.qkv_bias.data() : nullptr;
  g.out = qkv_.as<float>();
  g.ld_out = round_up(s.qkv_columns(), kPanel);
  gemm(path, layer.qkv, g);
  team_.sync();
  share(path, std::ssize(tokens_), [&](std::ptrdiff_t row) { rotate_row(index, row); });
  team_.sync();
  if (attention.blocks.empty()) return;
  if (is_last(index) && path.thread == 0) keep_sampled();
  share(path, std::ssize(attention.items),
        [&](std::ptrdiff_t item) { attend(path.thread, index, attention, item); });
  team_.sync();
  g.rows = rows_;
  g.x = attended_.as<void>();
  g.ld_x = round_up(s.query_columns(), kDepthStep);
  g.bias = nullptr;
  add_to_hidden(g);
  gemm(path, layer.o, g);
  team_.sync();
  add_over_ranks(path);
  norm_rows(path, layer.mlp_norm);
  if (s.experts > 0) {
    run_experts(path, layer);
  } else {
    run_dense(path, layer);
  }
  team_.sync();
  add_over_ranks(path);
}

// From the last layer's attention on only rows that are sampled matter, so that the others of a
// prompt are spared the rest. Attention does not touch the hidden state.
void Engine::keep_sampled() {
  const std::ptrdiff_t ld = round_up(model_.shape().hidden, kDepthStep);
  auto* hidden = hidden_.as<float>();
  for (const QueryBlock& block : last_attention_.blocks) {  // none moves to a later row
    if (block.first != block.to) {
      std::copy_n(hidden + block.first * ld, ld, hidden + block.to * ld);
    }
  }
  rows_ = std::ssize(sampled_);
}

// Where a half of a layer puts what it adds to the hidden state: there, or aside to be summed.
void Engine::add_to_hidden(Gemm& g) {
  g.epilogue = reduce_ ? Epilogue::kStore : Epilogue::kAdd;
  g.out = (reduce_ ? partial_ : hidden_).as<float>();
  g.ld_out = round_up(model_.shape().hidden, kDepthStep);
}

void Engine::add_over_ranks(Path& path) {
  if (!reduce_) return;
  const std::ptrdiff_t ld = round_up(model_.shape().hidden, kDepthStep);
  if (path.thread == 0 && !apart_) {
    try {
      reduce_(partial_.as<float>(), rows_ * ld);
    } catch (...) {
      apart_ = true;
      keep_failure(std::current_exception());
    }
  }
  team_.sync();
  share(path, rows_, [&](std::ptrdiff_t row) {
    float* out = hidden_.as<float>() + row * ld;
    const float* more = partial_.as<float>() + row * ld;
    for (std::ptrdiff_t c = 0; c < ld; ++c)
      out[c] += more[c];
  });
  team_.sync();
}

void Engine::rotate_row(std::size_t layer, std::ptrdiff_t row) {
  const Shape& s = model_.shape();
  const Token& token = tokens_[static_cast<std::size_t>(row)];
  const std::size_t half = s.block_elements() * element_bytes(dtype_);  // K (or V) of one layer
  const std::size_t token_bytes = half / static_cast<std::size_t>(s.block_tokens);
  const auto slot = static_cast<std::size_t>(token.slots[token.position / s.block_tokens]);
  const auto offset = static_cast<std::size_t>(token.position % s.block_tokens);
  Rope rope;
  rope.qkv = qkv_.as<float>() + row * round_up(s.qkv_columns(), kPanel);
  rope.cosine = model_.cosine(token.position);
  rope.sine = model_.sine(token.position);
  rope.heads = s.heads;
  rope.kv_heads = s.kv_heads;
  rope.head_dim = s.head_dim;
  rope.q = activations(query_, row, s.query_columns());
  rope.key = pool_ + slot * block_bytes(s, dtype_) + layer * 2 * half + offset * token_bytes;
  rope.value = rope.key + half;
  kernels_.rope(rope);
}

KvPlace Engine::kv_place(std::size_t layer, const QueryBlock& block, int head) const {
  const Shape& s = model_.shape();
  const std::size_t half = s.block_elements() * element_bytes(dtype_);
  const auto column = static_cast<std::size_t>(head) * static_cast<std::size_t>(s.head_dim);
  KvPlace place;
  place.pool = pool_ + layer * 2 * half + column * element_bytes(dtype_);
  place.block_bytes = block_bytes(s, dtype_);
  place.value_offset_bytes = half;
  place.token_bytes = half / static_cast<std::size_t>(s.block_tokens);
  place.block_tokens = s.block_tokens;
  place.slots = tokens_[static_cast<std::size_t>(block.first)].slots;
  return place;
}

void Engine::attend(int thread, std::size_t layer, const AttentionWork& work, std::ptrdiff_t item) {
  const Shape& s = model_.shape();
  const AttentionItem& here = work.items[static_cast<std::size_t>(item)];
  const QueryBlock& block = work.blocks[here.block];
  const std::ptrdiff_t ld_out = round_up(s.query_columns(), kDepthStep);
  const std::ptrdiff_t column = static_cast<std::ptrdiff_t>(here.head) * s.group() * s.head_dim;
  const std::size_t column_bytes = static_cast<std::size_t>(column) * kernels_.activation_bytes;
  Attention a;
  a.q = activations(query_, block.first, s.query_columns()) + column_bytes;
  a.ld_q = s.query_columns();
  a.out = activations(attended_, block.to, ld_out) + column_bytes;
  a.ld_out = ld_out;
  a.queries = block.count;
  a.position = tokens_[static_cast<std::size_t>(block.first)].position;
  a.kv_heads = here.heads;
  a.group = s.group();
  a.head_dim = s.head_dim;
  a.kv = kv_place(layer, block, here.head);
  KvPlace next;
  if (item + 1 < std::ssize(work.items)) {
    const AttentionItem& after = work.items[static_cast<std::size_t>(item + 1)];
    next = kv_place(layer, work.blocks[after.block], after.head);
    a.next = &next;
  }
  a.scratch = attention_scratch_[static_cast<std::size_t>(thread)].as<void>();
  kernels_.attention(a);
}

void Engine::run_dense(Path& path, const Layer& layer) {
  const Shape& s = model_.shape();
  Gemm g;
  g.rows = rows_;
  g.x = normed_.as<void>();
  g.ld_x = round_up(s.hidden, kDepthStep);
  g.epilogue = Epilogue::kSiluMul;
  g.act = middle_.as<void>();
  g.ld_act = round_up(s.intermediate, kDepthStep);
  gemm(path, layer.gate_up[0], g);
  team_.sync();
  g.x = middle_.as<void>();
  g.ld_x = g.ld_act;
  add_to_hidden(g);
  gemm(path, layer.down[0], g);
}

void Engine::run_head(Path& path) {
  const Shape& s = model_.shape();
  const std::ptrdiff_t ld = round_up(s.hidden, kDepthStep);
  const std::ptrdiff_t sampled = std::ssize(sampled_);
  share(path, sampled, [&](std::ptrdiff_t index) {
    const float* row = hidden_.as<float>() + index * ld;
    kernels_.norm(row, model_.norm().data(), s.hidden, s.norm_eps,
                  activations(head_input_, index, ld));
  });
  team_.sync();
  Gemm g;
  g.rows = sampled;
  g.x = head_input_.as<void>();
  g.ld_x = ld;
  g.epilogue = Epilogue::kHead;
  g.columns = s.vocabulary;
  g.best_value = best_value_.as<float>() + path.thread * sampled;
  g.best_id = best_id_.as<std::int32_t>() + path.thread * sampled;
  g.logits = logits_of_.data();
  gemm(path, model_.head(), g);
  team_.sync();
  share(path, sampled,
        [&](std::ptrdiff_t index) { sample_row(path.thread, static_cast<std::size_t>(index)); });
}

void Engine::keep_failure(std::exception_ptr failure) {
  const std::scoped_lock lock(failure_mutex_);
  if (!failure_) failure_ = std::move(failure);
}

void Engine::sample_row(int thread, std::size_t index) {
  const std::size_t sampled = sampled_.size();
  float best = best_value_.as<float>()[index];
  std::int32_t id = best_id_.as<std::int32_t>()[index];
  for (std::size_t t = 1; t < static_cast<std::size_t>(threads()); ++t) {
    const float value = best_value_.as<float>()[t * sampled + index];
    const std::int32_t other = best_id_.as<std::int32_t>()[t * sampled + index];
    if (value > best || (value == best && other < id)) {
      best = value;
      id = other;
    }
  }
  drawn_[index].token = id;
  if (logits_of_[index] == nullptr) return;
  try {
    const std::span logits(logits_of_[index], static_cast<std::size_t>(model_.shape().vocabulary));
    drawn_[index] = draw(kernels_, logits, id, input_.rows[sampled_[index]].choice, seen_[index],
                         sample_scratch_[static_cast<std::size_t>(thread)]);
  } catch (...) {
    keep_failure(std::current_exception());
  }
}

}  // namespace superinfer::cpu

// Mixture of experts: every token goes through its most likely experts, whose tokens are gathered
// so that an expert's weights are read once a step. Experts of a token are added in ascending
// order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "engine.h"

namespace superinfer::cpu {

void Engine::run_experts(Path& path, const Layer& layer) {
  const Shape& s = model_.shape();
  const std::ptrdiff_t ld = round_up(s.hidden, kDepthStep);
  Gemm g;
  g.rows = rows_;
  g.x = normed_.as<void>();
  g.ld_x = ld;
  g.out = router_.as<float>();
  g.ld_out = round_up(s.experts, kPanel);
  gemm(path, layer.router, g);
  team_.sync();
  // Routing is small; one thread does all of it, because the grouping needs it whole.
  if (path.thread == 0) {
    for (std::ptrdiff_t row = 0; row < g.rows; ++row)
      route_row(row);
    group_by_expert();
  }
  team_.sync();
  share(path, g.rows * s.experts_per_token, [&](std::ptrdiff_t item) {
    const std::ptrdiff_t to = expert_slot_[static_cast<std::size_t>(item)];
    std::memcpy(activations(expert_input_, to, ld),
                activations(normed_, item / s.experts_per_token, ld),
                static_cast<std::size_t>(ld) * kernels_.activation_bytes);
  });
  team_.sync();
  Gemm up;
  up.x = expert_input_.as<void>();
  up.ld_x = ld;
  up.epilogue = Epilogue::kSiluMul;
  up.act = middle_.as<void>();
  up.ld_act = round_up(s.intermediate, kDepthStep);
  experts_gemm(path, layer.gate_up, up);
  team_.sync();
  Gemm down;
  down.x = middle_.as<void>();
  down.ld_x = up.ld_act;
  down.out = expert_output_.as<float>();
  down.ld_out = ld;
  experts_gemm(path, layer.down, down);
  team_.sync();
  share(path, g.rows, [&](std::ptrdiff_t row) { combine_row(row); });
}

// Softmax over the chosen experts equals softmax over all, renormalised.
void Engine::route_row(std::ptrdiff_t row) {
  const Shape& s = model_.shape();
  const float* score = router_.as<float>() + row * round_up(s.experts, kPanel);
  const auto per_token = static_cast<std::size_t>(s.experts_per_token);
  std::int32_t* chosen = expert_of_.data() + static_cast<std::size_t>(row) * per_token;
  float* weight = expert_weight_.data() + static_cast<std::size_t>(row) * per_token;
  std::size_t count = 0;
  for (std::int32_t expert = 0; expert < s.experts;
       ++expert) {  // of equals the lower id stays ahead
    std::size_t at = count;
    while (at > 0 && score[expert] > score[chosen[at - 1]])
      --at;
    if (at == per_token) continue;
    count = std::min(count + 1, per_token);
    for (std::size_t i = count - 1; i > at; --i)
      chosen[i] = chosen[i - 1];
    chosen[at] = expert;
  }
  const float most = score[chosen[0]];
  std::sort(chosen, chosen + per_token);
  float total = 0.0F;
  for (std::size_t i = 0; i < per_token; ++i) {
    weight[i] = std::exp(score[chosen[i]] - most);
    total += weight[i];
  }
  for (std::size_t i = 0; i < per_token; ++i)
    weight[i] /= total;
}

void Engine::group_by_expert() {
  for (ExpertRows& rows : expert_rows_)
    rows = {};
  const std::size_t chosen =
      static_cast<std::size_t>(rows_) * static_cast<std::size_t>(model_.shape().experts_per_token);
  for (const std::int32_t expert : std::span(expert_of_).first(chosen)) {
    ++expert_rows_[static_cast<std::size_t>(expert)].count;
  }
  std::ptrdiff_t first = 0;
  for (ExpertRows& rows : expert_rows_) {
    rows.first = first;
    first += round_up(rows.count, kRowStep);
    rows.count = 0;
  }
  for (std::size_t i = 0; i < chosen; ++i) {
    ExpertRows& rows = expert_rows_[static_cast<std::size_t>(expert_of_[i])];
    expert_slot_[i] = rows.first + rows.count++;
  }
}

void Engine::experts_gemm(Path& path, const std::vector<Matrix>& weights, const Gemm& common) {
  const std::ptrdiff_t panels = weights.front().panels();
  const std::size_t element = kernels_.activation_bytes;
  share(path, panels * std::ssize(weights), [&](std::ptrdiff_t item) {
    const auto expert = static_cast<std::size_t>(item / panels);
    const ExpertRows& rows = expert_rows_[expert];
    if (rows.count == 0) return;
    Gemm g = common;
    g.rows = rows.count;
    g.x = static_cast<const unsigned char*>(common.x) +
          static_cast<std::size_t>(rows.first * common.ld_x) * element;
    if (common.epilogue == Epilogue::kSiluMul) {
      g.act = static_cast<unsigned char*>(common.act) +
              static_cast<std::size_t>(rows.first * common.ld_act) * element;
    } else {
      g.out = common.out + rows.first * common.ld_out;
    }
    const Matrix& matrix = weights[expert].stored(reads_packed(g.rows));
    g.weights = matrix.data();
    g.storage = matrix.storage();
    g.depth = matrix.depth();
    g.panel_begin = item % panels;
    g.panel_end = g.panel_begin + 1;
    kernels_.gemm(g);
  });
}

void Engine::combine_row(std::ptrdiff_t row) {
  const Shape& s = model_.shape();
  const std::ptrdiff_t ld = round_up(s.hidden, kDepthStep);
  float* out = (reduce_ ? partial_ : hidden_).as<float>() + row * ld;
  if (reduce_) std::fill_n(out, ld, 0.0F);
  for (int i = 0; i < s.experts_per_token; ++i) {
    const auto at = static_cast<std::size_t>(row * s.experts_per_token + i);
    const float* from = expert_output_.as<float>() + expert_slot_[at] * ld;
    const float weight = expert_weight_[at];
    for (std::ptrdiff_t c = 0; c < s.hidden; ++c)
      out[c] += weight * from[c];
  }
}

}  // namespace superinfer::cpu

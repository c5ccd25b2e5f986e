#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace superinfer::cpu {
namespace {

// Finaliser of splitmix64: every output bit depends on every input bit.
std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

struct Precedes {
  const float* logits;
  bool operator()(std::int32_t a, std::int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

// The first `wanted` ids, in order. One pass with a heap whose top is the last one kept.
std::vector<std::int32_t> first_ids(const float* logits, std::ptrdiff_t count, std::size_t wanted) {
  const Precedes precedes{logits};
  std::vector<std::int32_t> kept;
  kept.reserve(wanted);
  for (std::int32_t id = 0; id < static_cast<std::int32_t>(count); ++id) {
    if (kept.size() < wanted) {
      kept.push_back(id);
      std::push_heap(kept.begin(), kept.end(), precedes);
    } else if (logits[id] > logits[kept.front()]) {  // of equals the earlier id stays
      std::pop_heap(kept.begin(), kept.end(), precedes);
      kept.back() = id;
      std::push_heap(kept.begin(), kept.end(), precedes);
    }
  }
  std::sort_heap(kept.begin(), kept.end(), precedes);
  return kept;
}

// The first id whose running sum of weights exceeds `target`; the last with weight if rounding
// leaves none.
std::int32_t walk(const float* weights, std::ptrdiff_t count, double target) {
  double sum = 0.0;
  std::int32_t last = 0;
  for (std::int32_t id = 0; id < static_cast<std::int32_t>(count); ++id) {
    if (weights[id] <= 0.0F) continue;
    sum += static_cast<double>(weights[id]);
    last = id;
    if (sum > target) return id;
  }
  return last;
}

// Ids that may be chosen when top_k or top_p limits them, in order.
std::vector<std::int32_t> candidates(const float* logits, std::ptrdiff_t count,
                                     const float* weights, double total, const Choice& choice) {
  std::vector<std::int32_t> ids;
  if (choice.top_k > 0 && choice.top_k < count) {
    ids = first_ids(logits, count, static_cast<std::size_t>(choice.top_k));
  } else {
    // What is lighter than this adds up to less than the part that top_p leaves out.
    const double least = (1.0 - choice.top_p) * total / static_cast<double>(count);
    for (std::int32_t id = 0; id < static_cast<std::int32_t>(count); ++id) {
      if (static_cast<double>(weights[id]) >= least) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end(), Precedes{logits});
  }
  if (choice.top_p < 1.0) {
    double mass = 0.0;  // top_p is a share of what top_k has left
    for (const std::int32_t id : ids)
      mass += static_cast<double>(weights[id]);
    if (choice.top_k <= 0 || choice.top_k >= count) mass = total;
    double sum = 0.0;
    std::size_t kept = 0;
    while (kept < ids.size() && (kept == 0 || sum < choice.top_p * mass)) {
      sum += static_cast<double>(weights[ids[kept]]);
      ++kept;
    }
    ids.resize(kept);
  }
  return ids;
}

std::int32_t draw_token(const Kernels& kernels, const float* logits, std::ptrdiff_t count,
                        std::int32_t greedy, const Choice& choice, float* scratch) {
  const float scale = 1.0F / choice.temperature;
  if (!(choice.temperature > 0.0F) || !std::isfinite(scale) || choice.top_k == 1) return greedy;
  const double total = kernels.exp_sum(logits, count, logits[greedy], scale, scratch);
  if (!std::isfinite(total) || total <= 0.0) return greedy;
  const double u = uniform(choice.seed, choice.index);
  const bool limited = choice.top_p < 1.0 || (choice.top_k > 0 && choice.top_k < count);
  if (!limited) return walk(scratch, count, u * total);
  const std::vector<std::int32_t> ids = candidates(logits, count, scratch, total, choice);
  double mass = 0.0;
  for (const std::int32_t id : ids)
    mass += static_cast<double>(scratch[id]);
  double sum = 0.0;
  for (const std::int32_t id : ids) {
    sum += static_cast<double>(scratch[id]);
    if (sum > u * mass) return id;
  }
  return greedy;
}

}  // namespace

double uniform(std::uint64_t seed, std::uint64_t index) {
  constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;
  const std::uint64_t bits = mix(mix(seed + kGolden) + (index + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

Drawn draw(const Kernels& kernels, const float* logits, std::ptrdiff_t count, std::int32_t greedy,
           const Choice& choice, float* scratch) {
  Drawn drawn;
  drawn.token = draw_token(kernels, logits, count, greedy, choice, scratch);
  if (choice.logprobs < 0) return drawn;
  const float most = logits[greedy];
  const double log_total = std::log(kernels.exp_sum(logits, count, most, 1.0F, scratch));
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(logits[id] - most) - log_total);
  };
  drawn.logprob = logprob(drawn.token);
  const std::ptrdiff_t wanted = std::min<std::ptrdiff_t>(choice.logprobs, count);
  if (wanted > 0) {
    for (const std::int32_t id : first_ids(logits, count, static_cast<std::size_t>(wanted))) {
      drawn.top.emplace_back(id, logprob(id));
    }
  }
  return drawn;
}

}  // namespace superinfer::cpu

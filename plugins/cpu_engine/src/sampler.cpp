#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

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

constexpr std::ptrdiff_t kLanes = 16;  // side by side, so that the compiler can use vectors

// What weighs less than `least` weighs nothing from now on. Returns the sum of what is left, in a
// fixed order.
double drop_unlikely(float* weights, std::ptrdiff_t count, float least) {
  double sums[kLanes] = {};
  for (std::ptrdiff_t begin = 0; begin < count; begin += kLanes) {
    const std::ptrdiff_t lanes = std::min(kLanes, count - begin);
    for (std::ptrdiff_t lane = 0; lane < lanes; ++lane) {
      float& weight = weights[begin + lane];
      weight = weight < least ? 0.0F : weight;
      sums[lane] += static_cast<double>(weight);
    }
  }
  double total = 0.0;
  for (const double sum : sums)
    total += sum;
  return total;
}

// The largest, and of equals the lowest id.
std::int32_t first_largest(const float* logits, std::ptrdiff_t count) {
  float most[kLanes];
  std::fill_n(most, kLanes, -std::numeric_limits<float>::infinity());
  std::ptrdiff_t begin = 0;
  for (; begin + kLanes <= count; begin += kLanes) {
    for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) {
      most[lane] = logits[begin + lane] > most[lane] ? logits[begin + lane] : most[lane];
    }
  }
  float largest = *std::max_element(most, most + kLanes);
  for (; begin < count; ++begin)
    largest = std::max(largest, logits[begin]);
  const float* found = std::find(logits, logits + count, largest);
  return found == logits + count ? 0
                                 : static_cast<std::int32_t>(found - logits);  // 0: nothing but NaN
}

constexpr std::int32_t kInPrompt = std::numeric_limits<std::int32_t>::min();

// Each id that was seen is adjusted once, so the order of the ids does not matter.
void penalise(float* logits, const Choice& choice, const Seen& seen, std::int32_t* marks) {
  for (const std::int32_t id : seen.prompt)
    marks[id] |= kInPrompt;
  for (const std::int32_t id : seen.output)
    ++marks[id];
  const auto adjust = [&](std::int32_t id) {
    if (marks[id] == 0) return;
    const auto times = static_cast<float>(marks[id] & ~kInPrompt);
    float& logit = logits[id];
    logit = logit > 0.0F ? logit / choice.repetition : logit * choice.repetition;
    logit -= choice.frequency * times;
    if (times > 0.0F) logit -= choice.presence;
    marks[id] = 0;
  };
  std::for_each(seen.prompt.begin(), seen.prompt.end(), adjust);
  std::for_each(seen.output.begin(), seen.output.end(), adjust);
}

// The logits that the row chooses by, and the first of them in order.
std::pair<const float*, std::int32_t> adjusted(std::span<const float> logits, const Choice& choice,
                                               const Seen& seen, SampleScratch& scratch) {
  scratch.adjusted.assign(logits.begin(), logits.end());
  float* made = scratch.adjusted.data();
  if (choice.penalises()) {
    scratch.marks.resize(logits.size());
    penalise(made, choice, seen, scratch.marks.data());
  }
  for (const std::int32_t id : seen.forbidden)
    made[id] = -std::numeric_limits<float>::infinity();
  return {made, first_largest(made, std::ssize(logits))};
}

std::int32_t draw_token(const Kernels& kernels, const float* logits, std::ptrdiff_t count,
                        std::int32_t greedy, const Choice& choice, float* scratch) {
  const float scale = 1.0F / choice.temperature;
  if (!(choice.temperature > 0.0F) || !std::isfinite(scale) || choice.top_k == 1) return greedy;
  double total = kernels.exp_sum(logits, count, logits[greedy], scale, scratch);
  if (!std::isfinite(total) || total <= 0.0) return greedy;
  if (choice.min_p > 0.0) {
    total = drop_unlikely(scratch, count, static_cast<float>(choice.min_p) * scratch[greedy]);
  }
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

Drawn draw(const Kernels& kernels, std::span<const float> logits, std::int32_t greedy,
           const Choice& choice, const Seen& seen, SampleScratch& scratch) {
  const std::ptrdiff_t count = std::ssize(logits);
  scratch.weights.resize(logits.size());
  float* weights = scratch.weights.data();
  const float* chosen_by = logits.data();
  std::int32_t first = greedy;
  if (choice.penalises() || !seen.forbidden.empty()) {
    std::tie(chosen_by, first) = adjusted(logits, choice, seen, scratch);
  }
  Drawn drawn;
  drawn.token = draw_token(kernels, chosen_by, count, first, choice, weights);
  if (choice.logprobs < 0) return drawn;
  const float most = logits[static_cast<std::size_t>(greedy)];
  const double log_total = std::log(kernels.exp_sum(logits.data(), count, most, 1.0F, weights));
  const auto logprob = [&](std::int32_t id) {
    const float logit = logits[static_cast<std::size_t>(id)];
    return static_cast<float>(static_cast<double>(logit - most) - log_total);
  };
  drawn.logprob = logprob(drawn.token);
  const std::ptrdiff_t wanted = std::min<std::ptrdiff_t>(choice.logprobs, count);
  if (wanted > 0) {
    for (const std::int32_t id :
         first_ids(logits.data(), count, static_cast<std::size_t>(wanted))) {
      drawn.top.emplace_back(id, logprob(id));
    }
  }
  return drawn;
}

}  // namespace superinfer::cpu

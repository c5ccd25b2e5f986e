// The next token from a row of logits. A function of the logits and the choice alone.
//
// In this order: forbidden ids, the penalties (repetition, then frequency, then presence),
// temperature, min_p, top_k, top_p (a share of what those before it have left), the dice. Log
// probabilities are of the logits as they came.
//
// Knows no request and no stop id; keeps no state but scratch.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels.h"

namespace superinfer::cpu {

// How one row chooses. temperature <= 0 is greedy; top_k 0, top_p 1 and min_p 0 mean all.
struct Choice {
  float temperature = 0.0F;
  int top_k = 0;
  double top_p = 1.0;
  std::uint64_t seed = 0;
  std::uint64_t index = 0;  // number of the output token
  int logprobs = -1;        // -1 none, 0 of the chosen token, n of the n most likely as well
  double min_p = 0.0;       // least probability, as a share of the likeliest token's
  float repetition = 1.0F;  // divides positive logits of ids seen, multiplies the others
  float presence = 0.0F;    // taken once from the logits of ids in the output
  float frequency = 0.0F;   // taken as often as the id is in the output

  bool penalises() const { return repetition != 1.0F || presence != 0.0F || frequency != 0.0F; }
};

// The ids that a row's logits are adjusted for; all are below the vocabulary.
struct Seen {
  std::span<const std::int32_t> prompt;
  std::span<const std::int32_t> output;
  std::span<const std::int32_t> forbidden;  // never chosen; not the whole vocabulary
};

// What one thread needs meanwhile, each of the vocabulary's size.
struct SampleScratch {
  std::vector<float> weights;
  std::vector<float> adjusted;      // made when first needed
  std::vector<std::int32_t> marks;  // all 0 between two rows; made when first needed
};

struct Drawn {
  std::int32_t token = 0;
  float logprob = 0.0F;  // only with logprobs >= 0
  std::vector<std::pair<std::int32_t, float>> top;
};

// In [0, 1), a hash of (seed, index).
double uniform(std::uint64_t seed, std::uint64_t index);

// Order of candidates everywhere: the larger logit first, of equals the lower id.
// `greedy` is the first in that order. `seen` is read where the choice penalises or forbids.
Drawn draw(const Kernels& kernels, std::span<const float> logits, std::int32_t greedy,
           const Choice& choice, const Seen& seen, SampleScratch& scratch);

}  // namespace superinfer::cpu

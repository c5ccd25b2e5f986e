// The next token from a row of logits. A function of the logits and the choice alone.
//
// Knows no request and no stop id; keeps no state.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace superinfer::cpu {

// How one row chooses. temperature <= 0 is greedy; top_k 0 and top_p 1 mean all.
struct Choice {
  float temperature = 0.0F;
  int top_k = 0;
  double top_p = 1.0;
  std::uint64_t seed = 0;
  std::uint64_t index = 0;  // number of the output token
  int logprobs = -1;        // -1 none, 0 of the chosen token, n of the n most likely as well
};

struct Drawn {
  std::int32_t token = 0;
  float logprob = 0.0F;  // only with logprobs >= 0
  std::vector<std::pair<std::int32_t, float>> top;
};

// In [0, 1), a hash of (seed, index).
double uniform(std::uint64_t seed, std::uint64_t index);

// Order of candidates everywhere: the larger logit first, of equals the lower id.
// `greedy` is the first in that order; `scratch` has room for `count` floats.
Drawn draw(const Kernels& kernels, const float* logits, std::ptrdiff_t count, std::int32_t greedy,
           const Choice& choice, float* scratch);

}  // namespace superinfer::cpu

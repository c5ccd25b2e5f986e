#include "shape.h"

#include <stdexcept>
#include <string>

namespace superinfer::cpu {
namespace {

void require(bool condition, const char* rule) {
  if (!condition) throw std::invalid_argument(rule);
}

}  // namespace

void check(const Shape& shape) {
  require(shape.layers > 0 && shape.layers <= 1024, "layers: must be in 1..1024");
  require(shape.hidden > 0 && shape.hidden % 8 == 0, "hidden: must be a positive multiple of 8");
  require(shape.intermediate > 0 && shape.intermediate % 8 == 0,
          "intermediate: must be a positive multiple of 8");
  require(shape.head_dim > 0 && shape.head_dim % 8 == 0 && shape.head_dim <= 256,
          "head_dim: must be a multiple of 8 up to 256");
  require(shape.kv_heads > 0 && shape.heads > 0 && shape.heads % shape.kv_heads == 0,
          "heads: must be a positive multiple of kv_heads");
  require(shape.group() <= 64, "heads: at most 64 query heads may share a KV head");
  require(shape.vocabulary > 0, "vocabulary: must be positive");
  require(shape.context_tokens_max > 0, "context_tokens_max: must be positive");
  require(shape.block_tokens > 0 && shape.block_tokens <= 1024, "block_tokens: must be in 1..1024");
  require(shape.experts >= 0 && shape.experts <= 256, "experts: must be in 0..256");
  require(shape.experts == 0 ||
              (shape.experts_per_token > 0 && shape.experts_per_token <= shape.experts),
          "experts_per_token: must be in 1..experts");
  require(shape.norm_eps >= 0.0F, "norm_eps: must not be negative");
}

}  // namespace superinfer::cpu

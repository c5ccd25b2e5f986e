// The hot loops of a step behind one table of functions per instruction set and dtype.
//
// The promise of exactness. For every function here the result of a row (a token, or a pair of a
// query and a head) is a function of that row's own inputs alone: the same sequence of floating
// point operations is carried out whatever the other rows, their number, the split of rows and
// columns over calls and threads, and the place of blocks in the pool.
//   gemm       one accumulator per (row, column), over the depth in ascending order, from +0
//   attention  keys in sections of kSection by absolute position; in a section the scores, their
//              maximum, the weights, their sum over 16 lanes in ascending order and the values over
//              keys in ascending order; sections are folded one after the other. Keys that a query
//              may not see take part with a weight of exactly 0 (values are finite), or not at all.
//   norm, rope, sample: one row after the other.
// Different kernel sets may differ from each other in the last bits.
//
// Threads: the functions keep no state; calls that write different rows or columns may run at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shape.h"

namespace superinfer::cpu {

// Keys whose softmax is computed together.
constexpr std::ptrdiff_t kSection = 128;
// Query positions of one prefill chunk that share each tile of keys.
constexpr int kQueryBlock = 16;

enum class Epilogue {
  kStore,    // out = x w + bias
  kAdd,      // out += x w
  kSiluMul,  // act = silu(gate) * up, panels hold 16 gate columns beside their 16 up columns
  kHead,     // per row the largest column (the lowest id of equals), and the logits of chosen rows
};

// out[rows][columns] = x[rows][depth] w[depth][columns], for some panels of w.
struct Gemm {
  const void* x = nullptr;  // activations, readable up to the next multiple of kRowStep rows
  std::ptrdiff_t ld_x = 0;  // elements
  std::ptrdiff_t rows = 0;
  const void* weights = nullptr;  // panels of [depth / pair][32][pair], or packed (shape.h)
  Storage storage = Storage::kPlain;
  std::ptrdiff_t depth = 0;  // multiple of kDepthStep
  std::ptrdiff_t panel_begin = 0;
  std::ptrdiff_t panel_end = 0;
  const void* next = nullptr;  // a panel of this depth that is read next, to be fetched, or null
  Epilogue epilogue = Epilogue::kStore;
  const float* bias = nullptr;  // [panels * 32] or null
  float* out = nullptr;         // kStore, kAdd
  std::ptrdiff_t ld_out = 0;
  void* act = nullptr;  // kSiluMul: activations [rows][panels * 16]
  std::ptrdiff_t ld_act = 0;
  std::ptrdiff_t columns = 0;       // kHead: columns that are real
  float* best_value = nullptr;      // kHead: [rows], kept current
  std::int32_t* best_id = nullptr;  // kHead: [rows]
  float* const* logits = nullptr;   // kHead: per row where its logits go, or null
};

// Where the keys and values of one request, layer and KV head lie in the pool.
struct KvPlace {
  unsigned char* pool = nullptr;       // K of token 0 in block 0 of this layer and head
  std::size_t block_bytes = 0;         // from block to block
  std::size_t value_offset_bytes = 0;  // from K to V
  std::size_t token_bytes = 0;         // from token to token in a block
  int block_tokens = 0;
  const std::int32_t* slots = nullptr;
};

// Attention of neighbouring positions of one request over neighbouring KV heads;
// queries * kv_heads <= kQueryBlock.
struct Attention {
  const void* q = nullptr;  // activations of the first position, [kv_heads][group][head_dim]
  std::ptrdiff_t ld_q = 0;
  void* out = nullptr;  // activations, laid out as q
  std::ptrdiff_t ld_out = 0;
  int queries = 0;
  int position = 0;  // of the first query; it sees keys 0..position
  int kv_heads = 1;
  int group = 0;  // query heads of one KV head
  int head_dim = 0;
  KvPlace kv;                     // of the first KV head
  const KvPlace* next = nullptr;  // what will be attended to after this, to be fetched, or null
  void* scratch = nullptr;
};

// One row of q, k, v before rotation, and where they go.
struct Rope {
  const float* qkv = nullptr;
  const float* cosine = nullptr;  // [head_dim / 2] of this position
  const float* sine = nullptr;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  void* q = nullptr;               // activations
  unsigned char* key = nullptr;    // in the pool
  unsigned char* value = nullptr;  // in the pool
};

struct Kernels {
  const char* name = "";
  Dtype dtype = Dtype::kBf16;
  std::size_t activation_bytes = 4;
  // Products of up to this many rows may be given packed weights, and are faster for it; 0: none.
  // They are the same bits as from plain ones.
  std::ptrdiff_t packed_rows_max = 0;
  void (*gemm)(const Gemm&) = nullptr;
  void (*attention)(const Attention&) = nullptr;
  std::size_t (*attention_scratch_bytes)(int group, int head_dim) = nullptr;
  // x[i] = h[i] * weight[i] / sqrt(mean(h^2) + eps); `hidden` columns, h zero up to the next 32.
  void (*norm)(const float* h, const float* weight, std::ptrdiff_t hidden, float eps,
               void* x) = nullptr;
  void (*rope)(const Rope&) = nullptr;
  // out[i] = exp((x[i] - shift) * scale) for i < count; returns the sum in a fixed order.
  double (*exp_sum)(const float* x, std::ptrdiff_t count, float shift, float scale,
                    float* out) = nullptr;
};

// All sets this build has and this CPU supports for `dtype`, best first. The last is "portable".
std::vector<const Kernels*> supported_kernels(Dtype dtype);

// The named set, or the best for "auto". Throws std::invalid_argument that lists what there is.
const Kernels& select_kernels(const std::string& name, Dtype dtype);

}  // namespace superinfer::cpu

// A decoder over a block-first paged pool: one call per step, rows of prefill and decode mixed.
//
// Every result depends on a row's own tokens and KV alone (see kernels.h). Memory of the pool
// beyond the positions a row has written is never read into a result, so it may hold anything.
//
// Threads: launch(), collect() and load() belong to one caller; the step runs on the engine's own
// threads. Between launch() and collect() the blocks of the batch belong to the engine.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "model.h"
#include "sampler.h"
#include "team.h"

namespace superinfer::cpu {

// One row of a batch: tokens at positions start .. start + count - 1, whose KV is written.
struct RowInput {
  int start = 0;
  int count = 0;
  int slots = 0;  // leading slots of StepInput::slots that are this row's
  bool sample = false;
  int history = 0;    // leading ids of StepInput::history that are this row's
  int forbidden = 0;  // the same of StepInput::forbidden
  Choice choice;
};

struct StepInput {
  std::vector<std::int32_t> tokens;  // of all rows, one after the other
  std::vector<std::int32_t> slots;   // of all rows, one after the other
  // Of rows that sample with penalties: all ids of prompt and output so far, `index` of them
  // output.
  std::vector<std::int32_t> history;
  std::vector<std::int32_t> forbidden;  // ids that a row may not choose
  std::vector<RowInput> rows;
};

// Makes partial[count] the sum over all ranks, with the same bits on each of them. May throw.
using Reduce = std::function<void(float* partial, std::ptrdiff_t count)>;

class Engine {
 public:
  // `pool` holds `blocks` blocks of block_bytes() each and must outlive the engine.
  Engine(const Shape& shape, Dtype dtype, unsigned char* pool, std::ptrdiff_t blocks, int threads,
         const std::string& kernels);
  ~Engine();

  void load(const std::string& part, int layer, int expert, const float* data, std::ptrdiff_t rows,
            std::ptrdiff_t columns);
  void set_frequencies(const float* inverse, std::ptrdiff_t count);
  void finish() const { model_.require_complete(); }

  // For one rank of several: the shape is its share of the heads and of the MLP, so that what
  // attention and MLP add to the hidden state is a partial sum. `reduce` is called twice a layer
  // (in the last one only if a row samples) by one of the step's threads, on every rank equally
  // often; what it throws comes out of collect(), and the rest of that step does not call it. An
  // empty one: this rank is alone.
  void set_reduce(Reduce reduce);

  // Starts the step and returns. Throws std::invalid_argument, with nothing touched, for a batch
  // that does not fit model or pool, std::logic_error when a step is under way.
  void launch(StepInput input);
  // Waits for the step; one result for each row with `sample`, in order. Rethrows what went wrong.
  std::vector<Drawn> collect();
  // Waits for a step that was not collected. Idempotent.
  void close() noexcept;

  // Whether the logits of sampled rows are kept for logits(), by default not.
  void set_keep_logits(bool keep) { keep_logits_ = keep; }
  // Logits of sampled row `index` of the last step, [vocabulary]; null when they were not kept.
  const float* logits(std::size_t index) const;

  const Shape& shape() const { return model_.shape(); }
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return team_.threads(); }
  std::size_t weight_bytes() const { return model_.weight_bytes(); }
  static std::size_t block_bytes(const Shape& shape, Dtype dtype);

 private:
  // A token of the batch.
  struct Token {
    std::int32_t id = 0;
    int position = 0;
    const std::int32_t* slots = nullptr;
  };
  // Up to kQueryBlock neighbouring tokens of one row, and the row their results begin at.
  struct QueryBlock {
    std::ptrdiff_t first = 0;
    int count = 0;
    std::ptrdiff_t to = 0;
  };
  // A query block and the KV heads that one call attends to.
  struct AttentionItem {
    std::size_t block = 0;
    int head = 0;
    int heads = 0;
  };
  // What the attention of a layer does.
  struct AttentionWork {
    std::vector<QueryBlock> blocks;
    std::vector<AttentionItem> items;
  };
  // Rows of tokens that one expert computes, in the gathered buffers.
  struct ExpertRows {
    std::ptrdiff_t first = 0;
    std::ptrdiff_t count = 0;
  };
  // One thread's way through the stages of a step.
  struct Path {
    int thread = 0;
    std::size_t stage = 0;
  };

  void validate(const StepInput& input) const;
  void validate_sampling(const StepInput& input) const;
  void prepare();
  void divide_attention(AttentionWork& work) const;
  void reserve_step();
  std::size_t stages() const;
  void work(int thread) noexcept;
  void run_layer(Path& path, std::size_t index);
  bool is_last(std::size_t layer) const { return layer + 1 == model_.layers().size(); }
  void keep_sampled();
  void norm_rows(Path& path, const std::vector<float>& weight);
  void rotate_row(std::size_t layer, std::ptrdiff_t row);
  void attend(int thread, std::size_t layer, const AttentionWork& work, std::ptrdiff_t item);
  KvPlace kv_place(std::size_t layer, const QueryBlock& block, int head) const;
  void run_dense(Path& path, const Layer& layer);
  void add_to_hidden(Gemm& g);
  void add_over_ranks(Path& path);
  void run_experts(Path& path, const Layer& layer);
  void route_row(std::ptrdiff_t row);
  void group_by_expert();
  void experts_gemm(Path& path, const std::vector<Matrix>& weights, const Gemm& common);
  void combine_row(std::ptrdiff_t row);
  void run_head(Path& path);
  void sample_row(int thread, std::size_t index);
  void keep_failure(std::exception_ptr failure);

  template <class Body>
  void share(Path& path, std::ptrdiff_t items, Body body) {
    team_.share(path.thread, path.stage++, items, body);
  }
  void gemm(Path& path, const Matrix& weights, Gemm g);
  // Whether a product of so many rows reads packed weights, where there are some.
  bool reads_packed(std::ptrdiff_t rows) const { return rows <= kernels_.packed_rows_max; }
  unsigned char* activations(Buffer& buffer, std::ptrdiff_t row, std::ptrdiff_t ld) const;

  const Kernels& kernels_;
  Model model_;
  Dtype dtype_;
  unsigned char* pool_;
  std::ptrdiff_t blocks_;
  bool keep_logits_ = false;
  bool running_ = false;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;  // the first of the step
  Reduce reduce_;
  bool apart_ = false;  // a reduction of this step has failed

  StepInput input_;
  std::vector<Token> tokens_;
  AttentionWork attention_;
  AttentionWork last_attention_;      // of the last layer: the last token of each row that samples
  std::ptrdiff_t rows_ = 0;           // of the hidden state: tokens, from there on sampled ones
  std::vector<std::size_t> sampled_;  // rows with `sample`
  std::vector<float*> logits_of_;     // per sampled row, null when nobody needs them
  std::vector<Seen> seen_;            // per sampled row
  std::vector<Drawn> drawn_;

  Buffer hidden_;      // fp32 [tokens][hidden]
  Buffer partial_;     // fp32 [tokens][hidden], only with several ranks
  Buffer normed_;      // activations [tokens][hidden]
  Buffer qkv_;         // fp32 [tokens][qkv columns]
  Buffer query_;       // activations [tokens][heads][head_dim]
  Buffer attended_;    // activations [tokens][heads * head_dim]
  Buffer middle_;      // activations [tokens or expert rows][intermediate]
  Buffer head_input_;  // activations [sampled][hidden]
  Buffer logits_;      // fp32 [sampled][vocabulary]
  Buffer best_value_;  // fp32 [threads][sampled]
  Buffer best_id_;     // int32 [threads][sampled]
  std::vector<Buffer> attention_scratch_;
  std::vector<SampleScratch> sample_scratch_;

  Buffer router_;                        // fp32 [tokens][experts]
  Buffer expert_input_;                  // activations [expert rows][hidden]
  Buffer expert_output_;                 // fp32 [expert rows][hidden]
  std::vector<std::int32_t> expert_of_;  // [tokens][experts_per_token], ascending
  std::vector<float> expert_weight_;     // [tokens][experts_per_token]
  std::vector<std::ptrdiff_t>
      expert_slot_;                      // [tokens][experts_per_token], row in the gathered buffers
  std::vector<ExpertRows> expert_rows_;  // [experts]

  Team team_;  // last: its threads end before what they use
};

}  // namespace superinfer::cpu

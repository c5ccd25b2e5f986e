// A lane's copies in a stream of its own on a GPU, an event behind each slice.
//
// Called by the lane's thread; `follow` and `follow_in_graph` by any.
#pragma once

#include <memory>

#include "backend.hpp"
#include "gpu.hpp"
#include "timeline.hpp"
#include "turns.hpp"

namespace duplexkv {

class StreamBackend final : public Backend {
 public:
  // The GPU and the turns outlive the backend. `order`: Any only where the source is stable from
  // the submit on, which the books see to for copies in.
  static GpuStatus create(Gpu* gpu, Turns* turns, SourceOrder order,
                          std::unique_ptr<StreamBackend>* out);
  ~StreamBackend() override;

  [[nodiscard]] std::size_t depth() const noexcept override { return kDepth; }
  Progress order_behind(std::int64_t turn) noexcept override;
  Progress submit(const Slice& slice, std::uint64_t sequence) noexcept override;
  Progress query(std::uint64_t sequence) noexcept override;
  void drain() noexcept override;

  // Later work of `waiter` starts behind slice `sequence`, which has been submitted and not failed.
  // No wait is left out because it was made before: a destroyed stream's handle may come again.
  GpuStatus follow(Stream waiter, std::uint64_t sequence) noexcept;
  // Each launch of the graph being captured waits for the slices submitted before it.
  GpuStatus follow_in_graph(Stream waiter) noexcept;

 private:
  // One slice crosses while the next is being put in; more would only delay what is urgent.
  static constexpr std::size_t kDepth = 2;

  StreamBackend(Gpu* gpu, Turns* turns, SourceOrder order, Stream stream)
      : gpu_(gpu), turns_(turns), order_(order), stream_(stream), slices_(gpu, kDepth + 1) {}
  Progress close_slice(std::uint64_t sequence) noexcept;

  Gpu* gpu_;
  Turns* turns_;
  SourceOrder order_;
  Stream stream_;
  Timeline slices_;
  std::uint64_t waited_turns_ = 0;  // of the compute timeline, by this lane's stream
};

}  // namespace duplexkv

// Which batches of compute have ended: the host was told, or an event in a compute stream tells the
// GPU. The turn of a group is all that the lanes know of compute.
//
// Threads: mark and record are the front's (one at a time), all else is any thread's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "timeline.hpp"

namespace duplexkv {

class Turns {
 public:
  // Without a GPU (null) there are only marks by the host.
  explicit Turns(Gpu* gpu) {
    if (gpu != nullptr) events_ = std::make_unique<Timeline>(gpu, kEventsMax);
  }

  // The batch of `turn` and all before have ended.
  [[nodiscard]] bool ended(std::int64_t turn) const noexcept {
    return turn <= ended_.load(std::memory_order_seq_cst);
  }
  // Ended, or a stream can be made to wait for it.
  [[nodiscard]] bool ordered(std::int64_t turn) const noexcept {
    return ended(turn) || recorded(turn);
  }

  // As `ended`, but asks the GPU when there is an event. Also true when the GPU is lost, so that
  // whoever waits for the turn meets the loss.
  [[nodiscard]] bool ended_or_lost(std::int64_t turn) noexcept;

  // Lower turns than before change nothing.
  void mark(std::int64_t turn) noexcept;

  // The work of `stream` so far is that of `turn` and of all before, or is ordered behind it.
  // Failed: no event, or kEventsMax turns on their way (then full() is true).
  GpuStatus record(std::int64_t turn, Stream stream) noexcept;
  [[nodiscard]] bool full() const noexcept { return events_->full(); }

  // Later work of `waiter` starts behind `turn`; `waited` as in Timeline::wait. The first event at
  // or behind the turn, not the newest: a copy of turn t does not wait for the batch of t + 1.
  GpuStatus wait(Stream waiter, std::int64_t turn, std::uint64_t* waited) noexcept;

 private:
  static constexpr std::size_t kEventsMax = 64;

  static std::uint64_t sequence(std::int64_t turn) noexcept {
    return static_cast<std::uint64_t>(turn) + 1;
  }
  // An event tells of it.
  [[nodiscard]] bool recorded(std::int64_t turn) const noexcept {
    return turn <= recorded_.load(std::memory_order_seq_cst);
  }
  Progress look() noexcept;

  std::unique_ptr<Timeline> events_;
  std::atomic<std::int64_t> ended_{-1};
  std::atomic<std::int64_t> recorded_{-1};
};

}  // namespace duplexkv

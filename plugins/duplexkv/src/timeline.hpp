// The order of one stream's batches: a sequence number each, and an event behind it while the batch
// is not known to be done. Events are used again, so there are as many as batches in the air.
//
// One thread records; any thread may wait, poll and read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "gpu.hpp"

namespace duplexkv {

class Timeline {
 public:
  // At most `events_max` (> 0) batches in the air. Events are made when first needed.
  Timeline(Gpu* gpu, std::size_t events_max);
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  // `sequence`, larger than all before, stands for all work of `stream` so far. Failed, and nothing
  // recorded, also when events_max are in the air.
  GpuStatus record(Stream stream, std::uint64_t sequence) noexcept;

  // Later work of `waiter` starts behind `sequence`; if that was skipped, behind the next one there
  // is. `*waited` is the newest sequence of this timeline that the waiter is behind already: no
  // second wait for it, and none for what is done. Failed if none so new was recorded.
  GpuStatus wait(Stream waiter, std::uint64_t sequence, std::uint64_t* waited) noexcept;

  // A node in the graph being captured from `waiter`: each launch waits for what was recorded last
  // before it. `stream` is the one that is recorded.
  GpuStatus wait_external(Stream waiter, Stream stream) noexcept;

  // Looks how far the stream is. Lost, or Done when nothing is in the air, or Pending.
  Progress poll() noexcept;

  // All up to here are done, as far as poll has seen.
  [[nodiscard]] std::uint64_t completed() const noexcept {
    return completed_.load(std::memory_order_acquire);
  }
  [[nodiscard]] bool full() const noexcept;

 private:
  struct Entry {
    Event event = 0;
    bool made = false;
    std::uint64_t sequence = 0;
  };

  Progress advance() noexcept;
  [[nodiscard]] Entry& entry(std::uint64_t number) noexcept {
    return entries_[number % entries_.size()];
  }

  Gpu* gpu_;
  mutable std::mutex mutex_;    // an event must not be recorded again while somebody picks it
  std::vector<Entry> entries_;  // a ring: numbers [oldest_, next_) are in the air
  std::uint64_t oldest_ = 0;
  std::uint64_t next_ = 0;
  std::atomic<std::uint64_t> completed_{0};
  bool lost_ = false;
  Entry newest_;  // recorded behind every batch once a graph waits for it
};

}  // namespace duplexkv

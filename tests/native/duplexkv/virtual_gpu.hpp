// A GPU of threads: each stream is one, events are sequence numbers behind a lock. Every freedom
// that a real one has is taken: operations are late by random times, the copies of a slice run in
// any order and tear, a copy with SourceOrder::Any reads its source when it is called.
//
// Copies and compute touch memory by relaxed atomics, so that a missing wait shows as wrong bytes,
// as on a GPU, and not as a race of the test itself.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gpu.hpp"

namespace duplexkv_test {

using duplexkv::Event;
using duplexkv::GpuStatus;
using duplexkv::Progress;
using duplexkv::Slice;
using duplexkv::SourceOrder;
using duplexkv::Stream;

struct VirtualGpuOptions {
  std::uint64_t seed = 1;
  std::chrono::microseconds delay_max{60};
  std::uint64_t fail_call = 0;  // this call of those that can fail does; 0: none

  // What a missing wait is like. Each may be empty.
  std::function<bool(const Slice&)> forgets_waits =
      {};                                            // a copy goes ahead of what it should wait for
  std::function<bool(const Slice&)> reads_any = {};  // a copy reads at the call
  std::function<bool(Stream)> seen_early = {};  // events in the stream are told as done at once
};

class VirtualGpu final : public duplexkv::Gpu {
 public:
  struct Graph;

  explicit VirtualGpu(VirtualGpuOptions options) : options_(std::move(options)) {}
  ~VirtualGpu() override;

  GpuStatus create_stream(Stream* out) noexcept override;
  void destroy_stream(Stream stream) noexcept override;
  GpuStatus create_event(Event* out) noexcept override;
  void destroy_event(Event event) noexcept override;
  GpuStatus record(Event event, Stream stream) noexcept override;
  GpuStatus wait(Stream stream, Event event) noexcept override;
  GpuStatus wait_external(Stream stream, Event event) noexcept override;
  Progress query(Event event) noexcept override;
  GpuStatus copy(Stream stream, const Slice& slice, SourceOrder order) noexcept override;
  bool capturing(Stream stream) noexcept override;
  void drain(Stream stream) noexcept override;

  // ---- the test's own side ----
  // Compute: runs in the stream, or goes into the graph being captured from it.
  void run(Stream stream, std::function<void()> work);
  // Drops the waits of the stream that no work has followed yet.
  void forget_waits(Stream stream);
  // From now on nothing completes.
  void lose();
  void begin_capture(Stream stream);
  std::shared_ptr<Graph> end_capture(Stream stream);
  void launch(Stream stream, const std::shared_ptr<Graph>& graph);

  [[nodiscard]] std::uint64_t calls() const { return calls_.load(); }
  [[nodiscard]] std::uint64_t waits() const { return waits_.load(); }
  [[nodiscard]] std::uint64_t any_copies() const { return any_copies_.load(); }
  // Streams and events that were made and not destroyed.
  [[nodiscard]] std::size_t alive();

 private:
  struct VirtualEvent;
  struct VirtualStream;
  struct Operation;

  bool call_fails() noexcept;
  void serve(VirtualStream* stream);
  void push(VirtualStream* stream, Operation operation);
  static bool runnable(const VirtualStream& stream);
  static void delay(std::mt19937_64* random, std::chrono::microseconds longest);

  VirtualGpuOptions options_;
  std::mutex mutex_;  // guards all queues and events
  std::condition_variable changed_;
  std::set<VirtualStream*> streams_;
  std::set<VirtualEvent*> events_;
  bool lost_ = false;
  std::atomic<std::uint64_t> calls_{0};
  std::atomic<std::uint64_t> waits_{0};
  std::atomic<std::uint64_t> any_copies_{0};
};

// Words of memory that streams share.
inline std::uint64_t load_word(const std::uint64_t* word) {
  return std::atomic_ref(*const_cast<std::uint64_t*>(word)).load(std::memory_order_relaxed);
}
inline void store_word(std::uint64_t* word, std::uint64_t value) {
  std::atomic_ref(*word).store(value, std::memory_order_relaxed);
}

}  // namespace duplexkv_test

// The compute threads: one job at a time, carried out by all of them together.
//
// Waiting spins for a moment and then sleeps in the kernel, so that threads which are preempted or
// idle between steps cost nothing. start() and wait() belong to one caller; inside a job every
// thread calls sync() and share() equally often.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace superinfer::cpu {

class Team {
 public:
  // Throws std::invalid_argument unless 1 <= threads <= 256.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_count_; }

  // Wakes all threads for job(thread). The job must not throw. `stages` is the number of share()
  // calls that each thread makes in it.
  void start(std::function<void(int)> job, std::size_t stages);
  // Returns when the job has ended on every thread.
  void wait();

  // Inside a job: returns when all threads have arrived.
  void sync();

  // Inside a job: calls body(item) for items 0 .. items - 1, spread over the threads. Each thread
  // begins with its own contiguous share and then helps the others; `stage` counts the calls.
  template <class Body>
  void share(int thread, std::size_t stage, std::ptrdiff_t items, Body body) {
    for (int offset = 0; offset < threads_count_; ++offset) {
      const int owner = (thread + offset) % threads_count_;
      const std::ptrdiff_t begin = items * owner / threads_count_;
      const std::ptrdiff_t end = items * (owner + 1) / threads_count_;
      std::atomic<std::ptrdiff_t>& next = counter(stage, owner);
      for (;;) {
        const std::ptrdiff_t item = begin + next.fetch_add(1, std::memory_order_relaxed);
        if (item >= end) break;
        body(item);
      }
    }
  }

 private:
  struct alignas(64) Counter {
    std::atomic<std::ptrdiff_t> value{0};
  };

  std::atomic<std::ptrdiff_t>& counter(std::size_t stage, int owner) {
    return counters_[stage * static_cast<std::size_t>(threads_count_) +
                     static_cast<std::size_t>(owner)]
        .value;
  }
  void loop(int thread);

  int threads_count_;
  std::function<void(int)> job_;
  std::unique_ptr<Counter[]> counters_;
  std::size_t counters_count_ = 0;
  bool quit_ = false;  // written before generation_ is raised
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<std::uint32_t> ended_{0};    // threads that have finished the job
  alignas(64) std::atomic<std::uint32_t> arrived_{0};  // threads at the barrier
  alignas(64) std::atomic<std::uint32_t> passed_{0};   // barriers passed
  std::vector<std::thread> members_;
};

}  // namespace superinfer::cpu

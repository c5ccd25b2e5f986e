// Copy backends for tests: one that fails on purpose, one that copies on a thread of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "backend.hpp"

namespace duplexkv_test {

using duplexkv::Backend;
using duplexkv::Progress;
using duplexkv::Slice;

inline void copy_slice(const Slice& slice) {
  for (std::size_t i = 0; i < slice.bytes.size(); ++i) {
    std::memcpy(reinterpret_cast<void*>(slice.target[i]),
                reinterpret_cast<const void*>(slice.source[i]), slice.bytes[i]);
  }
}

// Copies at once, but answers `how` for slice number `at` and moves none of its bytes.
class FailingBackend final : public Backend {
 public:
  FailingBackend(std::uint64_t at, Progress how) : at_(at), how_(how) {}
  [[nodiscard]] std::size_t depth() const noexcept override { return 1; }
  Progress submit(const Slice& slice, std::uint64_t sequence) noexcept override {
    if (sequence == at_) return how_;
    copy_slice(slice);
    return Progress::Done;
  }
  Progress query(std::uint64_t) noexcept override { return Progress::Done; }
  void drain() noexcept override {}

 private:
  std::uint64_t at_;
  Progress how_;
};

// What a copy engine looks like: up to `depth` slices in the air, in order, ended by another
// thread.
class ThreadedBackend final : public Backend {
 public:
  explicit ThreadedBackend(std::size_t depth) : depth_(depth), worker_([this] { run(); }) {}
  ~ThreadedBackend() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }
  [[nodiscard]] std::size_t depth() const noexcept override { return depth_; }

  Progress submit(const Slice& slice, std::uint64_t sequence) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({slice, sequence});
      in_air_max_ = std::max(in_air_max_, queue_.size());
    }
    changed_.notify_all();
    return Progress::Pending;
  }
  Progress query(std::uint64_t sequence) noexcept override {
    return ended_.load(std::memory_order_acquire) >= sequence ? Progress::Done : Progress::Pending;
  }
  void drain() noexcept override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return queue_.empty(); });
  }
  std::size_t in_air_max() {
    const std::lock_guard lock(mutex_);
    return in_air_max_;
  }

 private:
  struct Item {
    Slice slice;
    std::uint64_t sequence;
  };

  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const Item item =
          queue_.front();  // stays in the queue while it is copied: drain waits for it
      lock.unlock();
      std::this_thread::yield();
      copy_slice(item.slice);
      ended_.store(item.sequence, std::memory_order_release);
      lock.lock();
      queue_.pop_front();
      changed_.notify_all();
    }
  }

  std::size_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  std::size_t in_air_max_ = 0;
  bool stopping_ = false;
  std::atomic<std::uint64_t> ended_{0};
  std::thread worker_;
};

}  // namespace duplexkv_test

// Lets one side sleep until the other has changed an atomic. Holds no state of its own: whoever
// waits gives the condition, whoever changes it rings afterwards.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace duplexkv {

class Bell {
 public:
  void ring() noexcept {
    // The empty critical section orders the change before a waiter's next look at its condition.
    {
      const std::lock_guard lock(mutex_);
    }
    changed_.notify_all();
  }

  template <typename Condition>
  void wait(Condition condition) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, condition);
  }

  // Returns whether the condition held before `deadline`.
  template <typename Condition>
  bool wait_until(std::chrono::steady_clock::time_point deadline, Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline, condition);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace duplexkv

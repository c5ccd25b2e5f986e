// A link's bandwidth as arithmetic: when a slice that starts now has crossed. Does not sleep.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace duplexkv {

using SteadyClock = std::chrono::steady_clock;

// A token bucket of kCreditTime: a lane that woke late catches up, one that was idle does not
// burst.
class Pace {
 public:
  // 0: no limit.
  explicit Pace(double bytes_per_s) noexcept : bytes_per_s_(bytes_per_s) {}

  [[nodiscard]] SteadyClock::time_point reserve(std::uint64_t bytes,
                                                SteadyClock::time_point now) noexcept {
    if (bytes_per_s_ <= 0) return now;
    free_at_ = std::max(free_at_, idle_ ? now : now - kCreditTime);
    idle_ = false;
    free_at_ += std::chrono::nanoseconds(
        static_cast<std::int64_t>(static_cast<double>(bytes) / bytes_per_s_ * 1e9));
    return free_at_;
  }

  // There is nothing to copy: no credit for the time until there is.
  void idle() noexcept { idle_ = true; }

 private:
  static constexpr std::chrono::milliseconds kCreditTime{10};

  double bytes_per_s_;
  bool idle_ = true;
  SteadyClock::time_point free_at_{};
};

}  // namespace duplexkv

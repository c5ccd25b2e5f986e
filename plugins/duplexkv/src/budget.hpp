// A rate in bytes/s that the lanes of several engines share: who may start a slice, and when.
//
// Arithmetic of a server with one queue: grants follow each other without overlap, each as long as
// its bytes take at the rate. A lane asks again until it is granted; whoever asks also decides for
// those who sleep, so that the order does not depend on who wakes first.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "error.hpp"

namespace duplexkv {

// Who goes first when several wait.
enum class Rank : std::uint8_t {
  Resume,  // copies in: a request that is to go on
  Leave,   // copies out that make room
  Eager,   // ahead of need
};

// Not thread-safe; time is an argument.
class Budget {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // A grant not used for so long is void, so that late lanes make no burst: what starts within any
  // time w is at most rate * (w + kLatenessMax) and one slice.
  static constexpr std::chrono::milliseconds kLatenessMax{2};
  // Who was passed over so often goes next, whatever its rank: nobody waits for ever.
  static constexpr std::uint32_t kPassesMax = 16;

  explicit Budget(double bytes_per_s) noexcept : bytes_per_s_(bytes_per_s) {}

  // A lane's place; it may be another's after `leave`. Throws std::bad_alloc.
  std::size_t join();
  void leave(std::size_t who) noexcept { askers_[who] = {}; }

  // Whether `bytes` may start now. If not, `who` waits with what it asked for last, and there is no
  // use in asking before *retry_at.
  bool ask(std::size_t who, Rank rank, std::uint64_t bytes, Time now, Time* retry_at) noexcept;

  [[nodiscard]] double bytes_per_s() const noexcept { return bytes_per_s_; }

 private:
  enum class State : std::uint8_t { Absent, Idle, Waiting, Granted };
  struct Asker {
    State state = State::Absent;
    Rank rank = Rank::Eager;
    std::uint32_t passes = 0;
    std::uint64_t bytes = 0;
    Time since;  // when it began to wait
    Time start;  // of its grant
  };

  void grant_until(Time now) noexcept;
  [[nodiscard]] Time next_start(Time now) const noexcept;
  static bool before(const Asker& a, const Asker& b) noexcept;

  double bytes_per_s_;
  Time free_at_{};
  std::vector<Asker> askers_;
};

// One for the lanes of a machine; any thread.
class SharedBudget {
 public:
  // Invalid for what is no rate.
  static Status create(double bytes_per_s, std::shared_ptr<SharedBudget>* out);
  explicit SharedBudget(double bytes_per_s) noexcept : budget_(bytes_per_s) {}

  [[nodiscard]] double bytes_per_s() const noexcept { return budget_.bytes_per_s(); }

 private:
  friend class BudgetSeat;
  std::mutex mutex_;
  Budget budget_;
};

// A lane's place in a shared budget, or in none: then everything may start.
class BudgetSeat {
 public:
  explicit BudgetSeat(std::shared_ptr<SharedBudget> shared);
  ~BudgetSeat();
  BudgetSeat(const BudgetSeat&) = delete;
  BudgetSeat& operator=(const BudgetSeat&) = delete;

  bool ask(Rank rank, std::uint64_t bytes, Budget::Time now, Budget::Time* retry_at) noexcept;

 private:
  std::shared_ptr<SharedBudget> shared_;
  std::size_t who_ = 0;
};

}  // namespace duplexkv

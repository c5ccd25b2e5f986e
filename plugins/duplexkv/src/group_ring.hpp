// A bounded queue of one lane: a ring of groups between one submitting side (the front, under the
// engine's lock) and one lane thread. No lock of its own.
//
//   polled <= landed <= submitted <= polled + capacity
//
// The front fills slots past `submitted` and publishes them (seq_cst: see Lane::wake_if_asleep);
// the lane ends them and publishes `landed` (release); the front reads the outcome and gives the
// slots back by `polled`. So a full ring means that nobody polls, and between `submitted` and
// `landed` a group is the lane's but for its atomics.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "duplexkv/duplexkv.h"

namespace duplexkv {

enum class Outcome : std::uint8_t {
  Done = DKV_DONE,
  Failed = DKV_FAILED,
  Cancelled = DKV_CANCELLED,
};

// Whose a queued group is: whoever leaves Queued first, the lane that plans it or the front that
// cancels it, has it.
enum class Hold : std::uint8_t { Queued, Planned, Cancelled };

// One group in the queue. The memory of its vectors goes from group to group (Engine::use_spare).
struct Group {
  // Of `stamp`: some slice of it is not in the lane's stream yet, or one never will be.
  static constexpr std::uint64_t kNotYet = 0;
  static constexpr std::uint64_t kNever = UINT64_MAX;

  bool leave_queue(Hold to) noexcept {
    Hold queued = Hold::Queued;
    return hold.compare_exchange_strong(queued, to, std::memory_order_acq_rel);
  }
  [[nodiscard]] bool cancelled() const noexcept {
    return hold.load(std::memory_order_acquire) == Hold::Cancelled ||
           abandoned.load(std::memory_order_relaxed);
  }

  std::int64_t ticket = 0;
  std::int64_t after = -1;
  std::vector<std::int32_t> source;
  std::vector<std::int32_t> target;
  std::uint64_t bytes = 0;
  Outcome outcome = Outcome::Done;  // written by the lane before `landed` passes it
  std::atomic<Hold> hold{Hold::Queued};
  std::atomic<bool> abandoned{false};         // by the front: told as cancelled when it has landed
  std::atomic<std::uint64_t> stamp{kNotYet};  // by the lane: its last slice, once submitted
};

class GroupRing {
 public:
  explicit GroupRing(std::size_t groups_max)
      : capacity_(groups_max), groups_(std::bit_ceil(groups_max)), mask_(groups_.size() - 1) {}

  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] Group& at(std::uint64_t sequence) noexcept { return groups_[sequence & mask_]; }

  // Front only: the group of a ticket that was not polled, or null. Tickets ascend in a ring.
  [[nodiscard]] Group* find(std::int64_t ticket) noexcept {
    std::uint64_t first = polled();
    std::uint64_t last = submitted();
    while (first < last) {
      const std::uint64_t middle = first + (last - first) / 2;
      if (at(middle).ticket < ticket) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    return first < submitted() && at(first).ticket == ticket ? &at(first) : nullptr;
  }

  // Any thread.
  [[nodiscard]] std::uint64_t submitted() const noexcept {
    return submitted_.load(std::memory_order_seq_cst);
  }
  [[nodiscard]] std::uint64_t landed() const noexcept {
    return landed_.load(std::memory_order_acquire);
  }
  [[nodiscard]] std::uint64_t polled() const noexcept {
    return polled_.load(std::memory_order_acquire);
  }

  // Front only.
  void publish_submitted(std::uint64_t sequence) noexcept {
    submitted_.store(sequence, std::memory_order_seq_cst);
  }
  void publish_polled(std::uint64_t sequence) noexcept {
    polled_.store(sequence, std::memory_order_release);
  }

  // Lane only.
  void publish_landed(std::uint64_t sequence) noexcept {
    landed_.store(sequence, std::memory_order_release);
  }

 private:
  std::size_t capacity_;
  std::vector<Group> groups_;
  std::uint64_t mask_;
  alignas(64) std::atomic<std::uint64_t> submitted_{0};
  alignas(64) std::atomic<std::uint64_t> landed_{0};
  alignas(64) std::atomic<std::uint64_t> polled_{0};
};

}  // namespace duplexkv

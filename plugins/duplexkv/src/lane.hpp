// One direction of the link: two bounded queues, by urgency, and the thread that empties them
// through a backend.
//
// Groups of one urgency run and land in the order of submission; the first one whose turn is not
// marked holds those behind it. An eager slice starts only when no urgent one is ready, and only
// when its turn has ended: in the stream of a GPU it would hold up what is urgent. Threads: the
// methods above the line are the front's (one thread at a time, the engine's lock); poison, stats
// and stop are any thread's.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>

#include "backend.hpp"
#include "bell.hpp"
#include "budget.hpp"
#include "group_ring.hpp"
#include "pace.hpp"
#include "planner.hpp"
#include "turns.hpp"

namespace duplexkv {

// Eager: copied ahead of need; it may come late, and be asked for again.
enum class Urgency : std::uint8_t { Urgent, Eager };
constexpr std::size_t kUrgencies = 2;

struct LaneConfig {
  const char* thread_name = "dkv-lane";  // at most 15 bytes
  PoolLayout source;
  PoolLayout target;
  double bytes_per_s = 0;  // 0: no limit
  std::size_t queue_groups_max = 0;
  SliceLimits slice;
  std::shared_ptr<SharedBudget> budget;  // null: none
  std::array<Rank, kUrgencies> ranks{};  // in the budget, by Urgency
};

// Written by the lane's thread, read by anybody; each counter is exact, together they may be torn.
struct LaneStats {
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::uint64_t> slices{0};
  std::atomic<std::uint64_t> descriptors{0};
  std::atomic<std::uint64_t> busy_ns{0};
  std::array<std::atomic<std::uint64_t>, 3> groups{};  // by Outcome
};

class Lane {
 public:
  // Starts the thread. `landing` rings whenever a group has landed. It and `turns` outlive the
  // lane. Throws std::bad_alloc, std::system_error.
  Lane(const LaneConfig& config, std::unique_ptr<Backend> backend, Turns* turns, Bell* landing);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  [[nodiscard]] GroupRing& ring(Urgency urgency) noexcept {
    return queues_[static_cast<std::size_t>(urgency)].ring;
  }
  [[nodiscard]] const GroupRing& ring(Urgency urgency) const noexcept {
    return queues_[static_cast<std::size_t>(urgency)].ring;
  }
  // To be called behind a mark, a cancel and a submission; `may_start`: the turn of one of its
  // groups is known. (If none is, nothing changes for the lane, whatever is queued before it.) A
  // ring costs a system call, and a thread that is at work looks at its queue anyway before it
  // sleeps.
  void wake_if_asleep(bool may_start) noexcept {
    if (asleep_.load(std::memory_order_seq_cst) && (may_start || poisoned())) doorbell_.ring();
  }

  // ---- any thread ----
  [[nodiscard]] bool poisoned() const noexcept { return poisoned_.load(std::memory_order_acquire); }
  void poison() noexcept;
  [[nodiscard]] const LaneStats& stats() const noexcept { return stats_; }
  // Cancels what has not landed and joins the thread. Idempotent; one caller at a time.
  void stop() noexcept;

 private:
  // Groups of one plan: ring sequences first_group, first_group + 1, ...
  struct Batch {
    TransferPlan plan;
    std::uint64_t first_group = 0;
    std::int64_t behind_turn = -1;  // which the backend has to wait for
    std::size_t slices_fed = 0;
    std::size_t slices_ended = 0;
    std::size_t groups_fed = 0;
    std::size_t groups_landed = 0;

    void start(std::uint64_t group) noexcept;
    [[nodiscard]] bool fed() const noexcept { return slices_fed == plan.slice_end.size(); }
    [[nodiscard]] bool ended() const noexcept { return slices_ended == plan.slice_end.size(); }
    [[nodiscard]] std::size_t group_begin(std::size_t group) const noexcept {
      return group == 0 ? 0 : plan.group_end[group - 1];
    }
  };
  struct Queue {
    Queue(Urgency of, std::size_t groups_max) : urgency(of), ring(groups_max) {}
    [[nodiscard]] Batch& feeding() noexcept { return batches[feeding_index]; }
    [[nodiscard]] Batch& other() noexcept { return batches[1 - feeding_index]; }

    Urgency urgency;
    GroupRing ring;
    // The lane thread's own.
    std::array<Batch, 2> batches;  // one being fed, one whose last slices are in the air
    std::size_t feeding_index = 0;
    std::uint64_t taken = 0;  // ring sequence of the next group to plan
  };
  // A slice in the air.
  struct Flight {
    Queue* queue = nullptr;
    Batch* batch = nullptr;
    std::size_t slice = 0;
    std::uint64_t sequence = 0;
    Progress progress = Progress::Pending;
    SteadyClock::time_point started;
    SteadyClock::time_point crossed_at;  // not ended before, whatever the backend says
  };

  void run() noexcept;
  void turn();
  bool retire();
  bool feed();
  bool feed_slice(Queue* queue);
  bool in_budget(const Queue& queue, std::uint64_t bytes) noexcept;
  void rest_until_budget();
  Progress start_slice(const Batch& batch, std::size_t slice, std::uint64_t sequence);
  bool form_batch(Queue* queue);
  void plan_group(Queue* queue, Batch* batch);
  void rest();
  [[nodiscard]] bool interrupted() const noexcept;
  [[nodiscard]] bool head_ready(Queue* queue) noexcept;
  [[nodiscard]] bool any_head_ready() noexcept;
  [[nodiscard]] bool eager_turn_runs() noexcept;
  [[nodiscard]] std::int64_t behind_turn(const Group& group) const noexcept;
  static bool slice_abandoned(Queue* queue, const Batch& batch, std::size_t slice);
  static void stamp_groups(const Flight& flight);
  void end_slice(const Flight& flight);
  static void fail_slice(const Flight& flight);
  void land_groups(Queue* queue, Batch* batch, std::size_t descriptors_ended);
  void land_all(Outcome outcome) noexcept;

  std::array<Queue, kUrgencies> queues_;  // by Urgency
  RunMerge merge_;
  Pace pace_;
  BudgetSeat budget_;
  std::array<Rank, kUrgencies> ranks_;
  SliceLimits slice_limits_;
  std::unique_ptr<Backend> backend_;
  Turns* turns_;
  Bell* landing_;
  Bell doorbell_;
  LaneStats stats_;
  // The thread sets it, then looks for work; the front publishes work, then looks at it. Both in
  // one total order (seq_cst, like `submitted` and the turns), so that one of them sees the other.
  std::atomic<bool> asleep_{false};
  std::atomic<bool> poisoned_{false};
  std::atomic<bool> stopping_{false};

  // The lane thread's own.
  std::deque<Flight> flights_;
  std::uint64_t slice_sequence_ = 0;
  SteadyClock::time_point slice_ended_at_{};
  const Queue* unpaid_ = nullptr;  // its next slice is not in the budget before budget_at_
  SteadyClock::time_point budget_at_{};

  std::thread thread_;  // last: it starts when all else is there
};

}  // namespace duplexkv

// One direction of the link: a bounded queue and the thread that empties it through a backend.
//
// Groups run and land in the order of submission. The first group whose turn is not marked holds
// those behind it. Threads: the methods above the line are the front's (one thread at a time, the
// engine's lock); poison, stats and stop are any thread's.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>

#include "backend.hpp"
#include "bell.hpp"
#include "group_ring.hpp"
#include "pace.hpp"
#include "planner.hpp"

namespace duplexkv {

struct LaneConfig {
  const char* thread_name = "dkv-lane";  // at most 15 bytes
  Pool source;
  Pool target;
  std::uint64_t block_bytes = 0;
  double bytes_per_s = 0;  // 0: no limit
  std::size_t queue_groups_max = 0;
  SliceLimits slice;
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
  // Starts the thread. `marked` is the newest turn whose batch has ended; `landing` rings whenever
  // a group has landed. Both outlive the lane. Throws std::bad_alloc, std::system_error.
  Lane(const LaneConfig& config, std::unique_ptr<Backend> backend,
       const std::atomic<std::int64_t>* marked, Bell* landing);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  [[nodiscard]] GroupRing& ring() noexcept { return ring_; }
  [[nodiscard]] const GroupRing& ring() const noexcept { return ring_; }
  // To be called behind a mark, and behind a submission; `may_start`: its first group is marked.
  // (If it is not, nothing changes for the lane, whatever is queued before it.) A ring costs a
  // system call, and a thread that is at work looks at its queue anyway before it sleeps.
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
    std::size_t slices_fed = 0;
    std::size_t slices_ended = 0;
    std::size_t groups_landed = 0;
  };
  // A slice in the air.
  struct Flight {
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
  bool form_batch();
  void rest();
  [[nodiscard]] bool interrupted() const noexcept;
  [[nodiscard]] bool head_ready() noexcept;
  void end_slice(const Flight& flight);
  void fail_slice(Batch* batch, std::size_t slice);
  void land_groups(Batch* batch, std::size_t slice);
  void land_all(Outcome outcome) noexcept;

  GroupRing ring_;
  RunMerge merge_;
  Pace pace_;
  SliceLimits slice_limits_;
  std::unique_ptr<Backend> backend_;
  const std::atomic<std::int64_t>* marked_;
  Bell* landing_;
  Bell doorbell_;
  LaneStats stats_;
  // The thread sets it, then looks for work; the front publishes work, then looks at it. Both in
  // one total order (seq_cst, like `submitted` and `marked`), so that one of them sees the other.
  std::atomic<bool> asleep_{false};
  std::atomic<bool> poisoned_{false};
  std::atomic<bool> stopping_{false};

  // The lane thread's own.
  std::array<Batch, 2> batches_;  // one being fed, one whose last slices are in the air
  std::size_t feeding_ = 0;
  std::deque<Flight> flights_;
  std::uint64_t taken_ = 0;  // ring sequence of the next group to plan
  std::uint64_t slice_sequence_ = 0;
  SteadyClock::time_point slice_ended_at_{};

  std::thread thread_;  // last: it starts when all else is there
};

}  // namespace duplexkv

// Two lanes over two pools, and the front that hands them work.
//
// Any thread may call anything; submit, mark and close take one lock, poll only tries it. Nothing
// waits for a copy but wait() and close(). Tickets are counted over both lanes.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "arena.hpp"
#include "backend.hpp"
#include "bell.hpp"
#include "book.hpp"
#include "error.hpp"
#include "lane.hpp"
#include "planner.hpp"

namespace duplexkv {

enum class Direction : std::uint8_t { D2H = DKV_D2H, H2D = DKV_H2D };

struct EngineConfig {
  Pool device;
  Pool host;
  std::uint64_t block_bytes = 0;
  std::array<double, 2> bytes_per_s{};  // by Direction; 0: no limit
  std::size_t queue_groups_max = 4096;
  std::uint64_t queue_bytes_max = std::uint64_t{1} << 30;
  SliceLimits slice;
};

// Groups to queue, all of one direction; see dkv_submission.
struct Submission {
  Ids source;
  Ids target;
  std::span<const std::int64_t> offsets;
  std::span<const std::int64_t> after;
};

class Engine {
 public:
  // One backend for each Direction. Throws std::bad_alloc, std::system_error.
  static Status create(const EngineConfig& config, std::array<std::unique_ptr<Backend>, 2> backends,
                       std::unique_ptr<Engine>* out);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Status submit(Direction direction, const Submission& submission, std::int64_t* first_ticket);
  Status mark(std::int64_t turn);
  Status poll(std::span<std::int64_t> tickets, std::span<std::uint8_t> outcomes,
              std::size_t* count);
  Status wait(std::chrono::nanoseconds timeout, bool* landed);
  Status poison(Direction direction);
  Status stats(Direction direction, dkv_stats* out) const;
  Status close();

  // Whether this process is a child of the one that made the engine: the lanes do not exist here.
  [[nodiscard]] bool forked() const noexcept;

 private:
  // What there is of each direction.
  struct Side {
    Side(const LaneConfig& config, std::unique_ptr<Backend> backend,
         const std::atomic<std::int64_t>* marked, Bell* landing, Book* source, Book* target)
        : check(config.source, config.target, config.block_bytes),
          source_book(source),
          target_book(target),
          lane(config, std::move(backend), marked, landing) {}

    GroupCheck check;
    Book* source_book;
    Book* target_book;
    std::atomic<std::uint64_t> unpolled_bytes{0};  // changed under the front's lock only
    Lane lane;
  };

  Engine(const EngineConfig& config, std::array<std::unique_ptr<Backend>, 2> backends);
  [[nodiscard]] LaneConfig lane_config(Direction direction) const noexcept;
  [[nodiscard]] Side& side(Direction direction) const noexcept {
    return *sides_[static_cast<std::size_t>(direction)];
  }
  Status usable() const;
  static Status check(Side* side, const Submission& submission);
  Status room(const Side& side, const Submission& submission) const;
  static Status take(Side* side, const Submission& submission);
  void fill(Side* side, const Submission& submission) const;
  static std::size_t poll_side(Side* side, std::span<std::int64_t> tickets,
                               std::span<std::uint8_t> outcomes);
  [[nodiscard]] bool idle() const noexcept;
  [[nodiscard]] bool unpolled_landing() const noexcept;

  EngineConfig config_;
  pid_t process_;
  std::atomic<std::int64_t> marked_{-1};
  Bell landing_;
  mutable std::mutex front_;  // guards all below but the lanes' own state
  bool closed_ = false;
  bool poll_h2d_first_ = false;
  std::int64_t next_ticket_ = 1;
  Book device_book_;
  Book host_book_;
  std::array<std::unique_ptr<Side>, 2> sides_;  // by Direction; last: their threads use the rest
};

}  // namespace duplexkv

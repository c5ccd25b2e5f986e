// Two lanes over two pools, and the front that hands them work.
//
// Any thread may call anything; submit, mark and close take one lock, poll only tries it. Nothing
// waits for a copy but wait() and close(). Tickets are counted over both lanes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "arena.hpp"
#include "backend.hpp"
#include "bell.hpp"
#include "book.hpp"
#include "budget.hpp"
#include "error.hpp"
#include "gpu.hpp"
#include "lane.hpp"
#include "planner.hpp"
#include "stream_backend.hpp"
#include "turns.hpp"

namespace duplexkv {

enum class Direction : std::uint8_t { D2H = DKV_D2H, H2D = DKV_H2D };

struct EngineConfig {
  Pool device;
  Pool host;
  std::uint64_t block_bytes = 0;
  // Where the bytes of a block lie; empty: block-first from the pool's base.
  std::vector<Segment> device_segments;
  std::vector<Segment> host_segments;
  std::uint64_t host_chunk_bytes = 0;   // no copy crosses a multiple of it from host.base; 0: any
  std::array<double, 2> bytes_per_s{};  // by Direction; 0: no limit
  std::size_t queue_groups_max = 4096;
  std::uint64_t queue_bytes_max = std::uint64_t{1} << 30;
  SliceLimits slice;
  std::shared_ptr<SharedBudget> budget;  // shared with other engines of the machine; null: none
};

// What an engine is made of. Over a GPU the backends are its own.
struct EngineParts {
  std::array<std::unique_ptr<Backend>, 2> backends;  // by Direction; none with a GPU
  std::shared_ptr<Gpu> gpu;
  std::unique_ptr<Book> device_book;  // null: the usual one
  std::unique_ptr<Book> host_book;
};

// Groups to queue, all of one direction; see dkv_submission. No flags: none is set.
struct Submission {
  Ids source;
  Ids target;
  std::span<const std::int64_t> offsets;
  std::span<const std::int64_t> after;
  std::span<const std::uint8_t> flags = {};
};

class Engine {
 public:
  // Throws std::bad_alloc, std::system_error.
  static Status create(const EngineConfig& config, EngineParts parts, std::unique_ptr<Engine>* out);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Status submit(Direction direction, const Submission& submission, std::int64_t* first_ticket);
  Status mark(std::int64_t turn);
  Status mark_stream(std::int64_t turn, Stream stream);
  Status stream_wait(std::int64_t ticket, Stream stream);
  Status graph_wait(Stream stream);
  Status cancel(std::int64_t ticket);
  Status poll(std::span<std::int64_t> tickets, std::span<std::uint8_t> outcomes,
              std::size_t* count);
  Status wait(std::chrono::nanoseconds timeout, bool* landed);
  Status poison(Direction direction);
  Status stats(Direction direction, dkv_stats* out) const;
  Status close();

  // Whether this process is a child of the one that made the engine: the lanes do not exist here.
  [[nodiscard]] bool forked() const noexcept;
  // Whether streams can wait for it, what of (null: none), and whether a graph is being captured
  // from one.
  [[nodiscard]] bool on_gpu() const noexcept { return gpu_ != nullptr; }
  [[nodiscard]] Gpu* gpu() const noexcept { return gpu_.get(); }
  [[nodiscard]] bool capturing(Stream stream) const noexcept {
    return gpu_ != nullptr && gpu_->capturing(stream);
  }

 private:
  // What there is of each direction.
  struct Side {
    Side(const LaneConfig& config, std::unique_ptr<Backend> backend, Turns* turns, Bell* landing,
         Book* source, Book* target)
        : source_blocks(config.source.blocks()),
          target_blocks(config.target.blocks()),
          source_book(source),
          target_book(target),
          lane(config, std::move(backend), turns, landing) {}

    std::uint64_t source_blocks;
    std::uint64_t target_blocks;
    Book* source_book;
    Book* target_book;
    std::atomic<std::uint64_t> unpolled_bytes{0};  // changed under the front's lock only
    Lane lane;
  };
  // A group that was not polled, and where it is queued.
  struct Place {
    std::size_t direction = 0;
    Side* side = nullptr;
    Group* group = nullptr;  // null: polled before
  };
  struct Layouts {
    PoolLayout device;
    PoolLayout host;
  };
  // The memory of a group's ids.
  struct IdLists {
    std::vector<std::int32_t> source;
    std::vector<std::int32_t> target;
  };
  // Groups and bytes that a submission adds to a lane.
  struct Load {
    std::array<std::size_t, kUrgencies> groups{};
    std::uint64_t bytes = 0;
  };

  Engine(const EngineConfig& config, Layouts layouts, EngineParts* parts);
  Status make_backends(EngineParts* parts);
  static Status lay_out(const EngineConfig& config, Layouts* out);
  void make_sides(EngineParts* parts);
  [[nodiscard]] LaneConfig lane_config(Direction direction) const;
  [[nodiscard]] Side& side(Direction direction) const noexcept {
    return *sides_[static_cast<std::size_t>(direction)];
  }
  Status usable() const;
  Status check_ticket(const char* verb, std::int64_t ticket) const;
  Status check_stream(const char* verb, Stream stream, bool in_graph) const;
  Status stream_status(const char* verb, GpuStatus status) const;
  static Status check(const Side& side, const Submission& submission);
  [[nodiscard]] Load load_of(const Submission& submission) const noexcept;
  Status room(const Side& side, const Load& load) const;
  static Status take(Side* side, const Submission& submission);
  void release(Side* side, Group* group) noexcept;
  void keep_spare(Group* group) noexcept;
  void use_spare(Group* group) noexcept;
  void fill(Side* side, const Submission& submission);
  [[nodiscard]] bool may_start(const Submission& submission) const noexcept;
  [[nodiscard]] Place find(std::int64_t ticket) const noexcept;
  std::size_t poll_ring(Side* side, GroupRing* ring, std::span<std::int64_t> tickets,
                        std::span<std::uint8_t> outcomes);
  [[nodiscard]] bool idle() const noexcept;
  [[nodiscard]] bool unpolled_landing() const noexcept;

  EngineConfig config_;
  Layouts layouts_;
  unsigned forks_;            // that led to the process which made it
  std::shared_ptr<Gpu> gpu_;  // null: the lanes are on the host
  Turns turns_;
  Bell landing_;
  mutable std::mutex front_;  // guards all below but the lanes' own state
  bool closed_ = false;
  std::size_t polls_ = 0;
  std::int64_t next_ticket_ = 1;
  std::vector<IdLists> spares_;  // never grows beyond what it reserved
  std::unique_ptr<Book> device_book_;
  std::unique_ptr<Book> host_book_;
  std::array<StreamBackend*, 2> streams_{};     // by Direction; the sides', with a GPU
  std::array<std::unique_ptr<Side>, 2> sides_;  // by Direction; last: their threads use the rest
};

}  // namespace duplexkv

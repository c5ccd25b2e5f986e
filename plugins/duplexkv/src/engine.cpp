#include "engine.hpp"

#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>

namespace duplexkv {
namespace {

constexpr std::uint64_t kSliceBytesMax = std::uint64_t{32} << 20;
constexpr std::uint32_t kSliceDescriptorsMax = 4096;
constexpr std::size_t kQueueGroupsMax = std::size_t{1} << 20;
// A slice of a slow link takes about this long to cross, so that the link is smooth and stops fast.
constexpr double kSliceSeconds = 1e-3;
constexpr std::uint64_t kPacedSliceBytesMin = std::uint64_t{16} << 10;

Status check_pool(const char* name, Pool pool, std::uint64_t block_bytes) noexcept {
  if (pool.base == nullptr) return fail(Status::Invalid, "%s pool: no memory", name);
  if (pool.blocks == 0 || pool.blocks > INT32_MAX) {
    return fail(Status::Invalid, "%s pool: blocks %" PRIu64 " outside 1..%d", name, pool.blocks,
                INT32_MAX);
  }
  if (block_bytes > (UINT64_MAX - reinterpret_cast<std::uintptr_t>(pool.base)) / pool.blocks) {
    return fail(Status::Invalid, "%s pool: %" PRIu64 " blocks of %" PRIu64 " bytes wrap around",
                name, pool.blocks, block_bytes);
  }
  return Status::Ok;
}

Status check_config(const EngineConfig& config) noexcept {
  if (config.block_bytes == 0) return fail(Status::Invalid, "block_bytes: must be > 0");
  Status status = check_pool("device", config.device, config.block_bytes);
  if (status == Status::Ok) status = check_pool("host", config.host, config.block_bytes);
  if (status != Status::Ok) return status;
  const std::byte* device_end = config.device.base + config.device.blocks * config.block_bytes;
  const std::byte* host_end = config.host.base + config.host.blocks * config.block_bytes;
  if (config.device.base < host_end && config.host.base < device_end) {
    return fail(Status::Invalid, "pools: device and host share memory");
  }
  for (const double rate : config.bytes_per_s) {
    if (!std::isfinite(rate) || rate < 0) {
      return fail(Status::Invalid, "bytes_per_s: %g is not a rate (0: no limit)", rate);
    }
    if (rate > 0 && rate < 1e6) {
      return fail(Status::Invalid, "bytes_per_s: %g < 1e6, slower than any link", rate);
    }
  }
  if (config.queue_groups_max == 0 || config.queue_groups_max > kQueueGroupsMax) {
    return fail(Status::Invalid, "queue_groups_max: %zu outside 1..%zu", config.queue_groups_max,
                kQueueGroupsMax);
  }
  if (config.queue_bytes_max == 0) return fail(Status::Invalid, "queue_bytes_max: must be > 0");
  if (config.slice.bytes == 0 || config.slice.bytes > kSliceBytesMax) {
    return fail(Status::Invalid, "slice_bytes_max: %" PRIu64 " outside 1..%" PRIu64,
                config.slice.bytes, kSliceBytesMax);
  }
  if (config.slice.descriptors == 0 || config.slice.descriptors > kSliceDescriptorsMax) {
    return fail(Status::Invalid, "slice_descriptors_max: %" PRIu32 " outside 1..%" PRIu32,
                config.slice.descriptors, kSliceDescriptorsMax);
  }
  return Status::Ok;
}

// Group g of a submission.
Ids part(Ids ids, const Submission& submission, std::size_t group) noexcept {
  const auto begin = static_cast<std::size_t>(submission.offsets[group]);
  const auto end = static_cast<std::size_t>(submission.offsets[group + 1]);
  return ids.subspan(begin, end - begin);
}

}  // namespace

Status Engine::create(const EngineConfig& config, std::array<std::unique_ptr<Backend>, 2> backends,
                      std::unique_ptr<Engine>* out) {
  const Status status = check_config(config);
  if (status == Status::Ok) out->reset(new Engine(config, std::move(backends)));
  return status;
}

Engine::Engine(const EngineConfig& config, std::array<std::unique_ptr<Backend>, 2> backends)
    : config_(config),
      process_(getpid()),
      device_book_(config.device.blocks),
      host_book_(config.host.blocks) {
  sides_[DKV_D2H] =
      std::make_unique<Side>(lane_config(Direction::D2H), std::move(backends[DKV_D2H]), &marked_,
                             &landing_, &device_book_, &host_book_);
  sides_[DKV_H2D] =
      std::make_unique<Side>(lane_config(Direction::H2D), std::move(backends[DKV_H2D]), &marked_,
                             &landing_, &host_book_, &device_book_);
}

Engine::~Engine() {
  close();
}

LaneConfig Engine::lane_config(Direction direction) const noexcept {
  const bool out = direction == Direction::D2H;
  LaneConfig lane{.thread_name = out ? "dkv-d2h" : "dkv-h2d",
                  .source = out ? config_.device : config_.host,
                  .target = out ? config_.host : config_.device,
                  .block_bytes = config_.block_bytes,
                  .bytes_per_s = config_.bytes_per_s[static_cast<std::size_t>(direction)],
                  .queue_groups_max = config_.queue_groups_max,
                  .slice = config_.slice};
  if (lane.bytes_per_s > 0 &&
      lane.bytes_per_s * kSliceSeconds < static_cast<double>(lane.slice.bytes)) {
    const auto smooth = static_cast<std::uint64_t>(lane.bytes_per_s * kSliceSeconds);
    lane.slice.bytes = std::min(lane.slice.bytes, std::max(smooth, kPacedSliceBytesMin));
  }
  return lane;
}

bool Engine::forked() const noexcept {
  return process_ != getpid();
}

Status Engine::usable() const {
  if (closed_) return fail(Status::Closed, "engine: closed");
  return Status::Ok;
}

Status Engine::submit(Direction direction, const Submission& submission,
                      std::int64_t* first_ticket) {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  Side* const to = &side(direction);
  const std::lock_guard lock(front_);
  Status status = usable();
  if (status == Status::Ok && to->lane.poisoned()) {
    status = fail(Status::Poisoned, "%s lane: poisoned by an earlier failure",
                  direction == Direction::D2H ? "d2h" : "h2d");
  }
  if (status == Status::Ok) status = check(to, submission);
  if (status == Status::Ok) status = room(*to, submission);
  if (status != Status::Ok) return status;
  fill(to, submission);  // may throw: nothing is taken or published yet
  status = take(to, submission);
  if (status != Status::Ok) return status;
  const std::size_t groups = submission.after.size();
  *first_ticket = next_ticket_;
  next_ticket_ += static_cast<std::int64_t>(groups);
  to->unpolled_bytes.fetch_add(submission.source.size() * config_.block_bytes,
                               std::memory_order_relaxed);
  to->lane.ring().publish_submitted(to->lane.ring().submitted() + groups);
  to->lane.wake_if_asleep(submission.after.front() <= marked_.load(std::memory_order_relaxed));
  return Status::Ok;
}

Status Engine::check(Side* side, const Submission& submission) {
  const std::size_t groups = submission.after.size();
  if (groups == 0) return fail(Status::Invalid, "submit: no group");
  if (submission.source.size() != submission.target.size()) {
    return fail(Status::Invalid, "submit: %zu sources and %zu targets", submission.source.size(),
                submission.target.size());
  }
  if (submission.offsets.size() != groups + 1 || submission.offsets.front() != 0 ||
      submission.offsets.back() != static_cast<std::int64_t>(submission.source.size()) ||
      !std::is_sorted(submission.offsets.begin(), submission.offsets.end())) {
    return fail(Status::Invalid, "submit: offsets are not %zu ascending from 0 to %zu", groups + 1,
                submission.source.size());
  }
  for (std::size_t group = 0; group < groups; ++group) {
    const Status status = side->check.run(part(submission.source, submission, group),
                                          part(submission.target, submission, group));
    if (status != Status::Ok) return status;
  }
  return Status::Ok;
}

// A submission larger than queue_bytes_max may go when it is alone, or it would never go.
Status Engine::room(const Side& side, const Submission& submission) const {
  const std::size_t groups = submission.after.size();
  const GroupRing& ring = side.lane.ring();
  if (groups > ring.capacity()) {
    return fail(Status::TooLarge, "submit: %zu groups > queue_groups_max %zu", groups,
                ring.capacity());
  }
  const std::uint64_t queued = ring.submitted() - ring.polled();
  const std::uint64_t bytes = submission.source.size() * config_.block_bytes;
  const bool full = queued + groups > ring.capacity() ||
                    (queued > 0 && side.unpolled_bytes.load(std::memory_order_relaxed) + bytes >
                                       config_.queue_bytes_max);
  return full ? Status::Busy : Status::Ok;
}

// Enters all slots in the books, or none.
Status Engine::take(Side* side, const Submission& submission) {
  Status status = side->source_book->take_readers(submission.source);
  if (status != Status::Ok) return status;
  status = side->target_book->take_writers(submission.target);
  if (status != Status::Ok) side->source_book->drop_readers(submission.source);
  return status;
}

// Writes the groups into free slots of the ring, for the lane to see once they are published.
void Engine::fill(Side* side, const Submission& submission) const {
  GroupRing& ring = side->lane.ring();
  const std::uint64_t first = ring.submitted();
  const std::size_t groups = submission.after.size();
  for (std::size_t i = 0; i < groups; ++i) {
    const Ids source = part(submission.source, submission, i);
    const Ids target = part(submission.target, submission, i);
    Group& group = ring.at(first + i);
    group.source.assign(source.begin(), source.end());
    group.target.assign(target.begin(), target.end());
    group.ticket = next_ticket_ + static_cast<std::int64_t>(i);
    group.after = submission.after[i];
    group.bytes = source.size() * config_.block_bytes;
    group.outcome = Outcome::Done;
  }
}

Status Engine::mark(std::int64_t turn) {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  const std::lock_guard lock(front_);
  const Status status = usable();
  if (status != Status::Ok || turn <= marked_.load(std::memory_order_relaxed)) return status;
  marked_.store(turn, std::memory_order_seq_cst);
  for (const auto& side : sides_)
    side->lane.wake_if_asleep(true);
  return Status::Ok;
}

Status Engine::poll(std::span<std::int64_t> tickets, std::span<std::uint8_t> outcomes,
                    std::size_t* count) {
  *count = 0;
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  if (tickets.size() != outcomes.size()) {
    return fail(Status::Invalid, "poll: room for %zu tickets and %zu outcomes", tickets.size(),
                outcomes.size());
  }
  if (!unpolled_landing()) return Status::Ok;
  const std::unique_lock lock(front_, std::try_to_lock);
  if (!lock.owns_lock()) return Status::Ok;  // another thread is in submit: next time
  // In turns, so that a small `tickets` starves neither direction.
  const std::size_t first = poll_h2d_first_ ? DKV_H2D : DKV_D2H;
  poll_h2d_first_ = !poll_h2d_first_;
  for (const std::size_t direction : {first, 1 - first}) {
    *count += poll_side(sides_[direction].get(), tickets.subspan(*count), outcomes.subspan(*count));
  }
  return Status::Ok;
}

std::size_t Engine::poll_side(Side* side, std::span<std::int64_t> tickets,
                              std::span<std::uint8_t> outcomes) {
  GroupRing& ring = side->lane.ring();
  const std::uint64_t begin = ring.polled();
  const std::uint64_t end = std::min<std::uint64_t>(ring.landed(), begin + tickets.size());
  for (std::uint64_t sequence = begin; sequence < end; ++sequence) {
    const Group& group = ring.at(sequence);
    tickets[sequence - begin] = group.ticket;
    outcomes[sequence - begin] = static_cast<std::uint8_t>(group.outcome);
    side->source_book->drop_readers(group.source);
    side->target_book->drop_writers(group.target);
    side->unpolled_bytes.fetch_sub(group.bytes, std::memory_order_relaxed);
  }
  ring.publish_polled(end);
  return end - begin;
}

bool Engine::unpolled_landing() const noexcept {
  return std::any_of(sides_.begin(), sides_.end(), [](const auto& side) {
    return side->lane.ring().landed() != side->lane.ring().polled();
  });
}

bool Engine::idle() const noexcept {
  return std::all_of(sides_.begin(), sides_.end(), [](const auto& side) {
    return side->lane.ring().submitted() == side->lane.ring().polled();
  });
}

Status Engine::wait(std::chrono::nanoseconds timeout, bool* landed) {
  *landed = false;
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  if (timeout.count() < 0) return fail(Status::Invalid, "wait: timeout must be >= 0");
  const auto now = SteadyClock::now();
  const bool endless = timeout > SteadyClock::time_point::max() - now;
  landing_.wait_until(endless ? SteadyClock::time_point::max() : now + timeout,
                      [this] { return unpolled_landing() || idle(); });
  *landed = unpolled_landing();
  return Status::Ok;
}

Status Engine::poison(Direction direction) {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  side(direction).lane.poison();
  return Status::Ok;
}

Status Engine::stats(Direction direction, dkv_stats* out) const {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  const Side& from = side(direction);
  const LaneStats& stats = from.lane.stats();
  const GroupRing& ring = from.lane.ring();
  constexpr auto kRelaxed = std::memory_order_relaxed;
  out->poisoned = from.lane.poisoned() ? 1 : 0;
  out->bytes = stats.bytes.load(kRelaxed);
  out->slices = stats.slices.load(kRelaxed);
  out->descriptors = stats.descriptors.load(kRelaxed);
  out->groups_done = stats.groups[DKV_DONE].load(kRelaxed);
  out->groups_failed = stats.groups[DKV_FAILED].load(kRelaxed);
  out->groups_cancelled = stats.groups[DKV_CANCELLED].load(kRelaxed);
  out->busy_ns = stats.busy_ns.load(kRelaxed);
  // Read against the order in which they grow, so that no difference is negative.
  const std::uint64_t polled = ring.polled();
  const std::uint64_t landed = ring.landed();
  const std::uint64_t submitted = ring.submitted();
  out->queued_groups = submitted - landed;
  out->unpolled_groups = submitted - polled;
  out->unpolled_bytes = from.unpolled_bytes.load(kRelaxed);
  return Status::Ok;
}

Status Engine::close() {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  const std::lock_guard lock(front_);
  closed_ = true;
  for (const auto& side : sides_) {
    if (side != nullptr) side->lane.stop();
  }
  return Status::Ok;
}

}  // namespace duplexkv

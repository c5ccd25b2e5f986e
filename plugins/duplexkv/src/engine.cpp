#include "engine.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
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

Status check_config(const EngineConfig& config) noexcept {
  if (config.block_bytes == 0) return fail(Status::Invalid, "block_bytes: must be > 0");
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

// Memory of ids kept for groups to come. A ring has thousands of places, each used once in a while:
// the newest of these is in a cache, and the place's own, or new memory, is not.
constexpr std::size_t kSparesMax = 64;

// Forks that led to this process: to ask the system for its id takes a call of the system.
std::atomic<unsigned> forks{0};
[[maybe_unused]] const int fork_hook =
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });

constexpr std::array kAllUrgencies{Urgency::Urgent, Urgency::Eager};
constexpr unsigned kKnownFlags = DKV_EAGER;

Urgency urgency_of(const Submission& submission, std::size_t group) noexcept {
  if (submission.flags.empty()) return Urgency::Urgent;
  return (submission.flags[group] & DKV_EAGER) != 0 ? Urgency::Eager : Urgency::Urgent;
}

// Group g of a submission.
Ids part(Ids ids, const Submission& submission, std::size_t group) noexcept {
  const auto begin = static_cast<std::size_t>(submission.offsets[group]);
  const auto end = static_cast<std::size_t>(submission.offsets[group + 1]);
  return ids.subspan(begin, end - begin);
}

}  // namespace

Status Engine::create(const EngineConfig& config, EngineParts parts, std::unique_ptr<Engine>* out) {
  Layouts layouts;
  Status status = check_config(config);
  if (status == Status::Ok) status = lay_out(config, &layouts);
  if (status != Status::Ok) return status;
  std::unique_ptr<Engine> engine(new Engine(config, std::move(layouts), &parts));
  if (engine->gpu_ != nullptr) status = engine->make_backends(&parts);
  if (status != Status::Ok) return status;
  engine->make_sides(&parts);
  *out = std::move(engine);
  return Status::Ok;
}

// Both tiers may be laid out as they like, as long as a block is as many bytes in both.
Status Engine::lay_out(const EngineConfig& config, Layouts* out) {
  const auto segments_of = [&config](Pool pool, const std::vector<Segment>& given) {
    const Segment whole{
        .base = pool.base, .stride = config.block_bytes, .bytes = config.block_bytes};
    return given.empty() ? std::vector{whole} : given;
  };
  Status status = PoolLayout::create("device", segments_of(config.device, config.device_segments),
                                     config.device.blocks, &out->device);
  if (status == Status::Ok) {
    status = PoolLayout::create("host", segments_of(config.host, config.host_segments),
                                config.host.blocks, &out->host);
  }
  if (status != Status::Ok) return status;
  for (const PoolLayout* layout : {&out->device, &out->host}) {
    if (layout->block_bytes() == config.block_bytes) continue;
    return fail(Status::Invalid,
                "%s pool: its segments hold %" PRIu64 " bytes of a block, block_bytes is %" PRIu64,
                layout == &out->device ? "device" : "host", layout->block_bytes(),
                config.block_bytes);
  }
  if (share_memory(out->device, out->host)) {
    return fail(Status::Invalid, "pools: device and host share memory");
  }
  out->host.chunks = {.base = reinterpret_cast<std::uintptr_t>(config.host.base),
                      .bytes = config.host_chunk_bytes};
  return Status::Ok;
}

Engine::Engine(const EngineConfig& config, Layouts layouts, EngineParts* parts)
    : config_(config),
      layouts_(std::move(layouts)),
      forks_(forks.load(std::memory_order_relaxed)),
      gpu_(std::move(parts->gpu)),
      turns_(gpu_.get()),
      device_book_(std::move(parts->device_book)),
      host_book_(std::move(parts->host_book)) {
  spares_.reserve(kSparesMax);
  if (device_book_ == nullptr) device_book_ = std::make_unique<Book>(config.device.blocks);
  if (host_book_ == nullptr) host_book_ = std::make_unique<Book>(config.host.blocks);
}

// A copy out reads what compute has just written, behind its event: never at any other time. A copy
// in reads a slot whose writer has been polled, or the books would have refused it.
Status Engine::make_backends(EngineParts* parts) {
  for (const Direction direction : {Direction::D2H, Direction::H2D}) {
    const auto index = static_cast<std::size_t>(direction);
    const SourceOrder order =
        direction == Direction::D2H ? SourceOrder::InStream : SourceOrder::Any;
    std::unique_ptr<StreamBackend> backend;
    const GpuStatus status = StreamBackend::create(gpu_.get(), &turns_, order, &backend);
    if (status != GpuStatus::Ok) {
      return fail(Status::Internal, "engine: the GPU made no stream for a lane");
    }
    streams_[index] = backend.get();
    parts->backends[index] = std::move(backend);
  }
  return Status::Ok;
}

void Engine::make_sides(EngineParts* parts) {
  Book* const device = device_book_.get();
  Book* const host = host_book_.get();
  sides_[DKV_D2H] =
      std::make_unique<Side>(lane_config(Direction::D2H), std::move(parts->backends[DKV_D2H]),
                             &turns_, &landing_, device, host);
  sides_[DKV_H2D] =
      std::make_unique<Side>(lane_config(Direction::H2D), std::move(parts->backends[DKV_H2D]),
                             &turns_, &landing_, host, device);
}

Engine::~Engine() {
  close();
}

LaneConfig Engine::lane_config(Direction direction) const {
  const bool out = direction == Direction::D2H;
  LaneConfig lane{.thread_name = out ? "dkv-d2h" : "dkv-h2d",
                  .source = out ? layouts_.device : layouts_.host,
                  .target = out ? layouts_.host : layouts_.device,
                  .bytes_per_s = config_.bytes_per_s[static_cast<std::size_t>(direction)],
                  .queue_groups_max = config_.queue_groups_max,
                  .slice = config_.slice,
                  .budget = config_.budget,
                  .ranks = {out ? Rank::Leave : Rank::Resume, Rank::Eager}};
  const double shared = config_.budget == nullptr ? 0 : config_.budget->bytes_per_s();
  for (const double rate : {lane.bytes_per_s, shared}) {
    if (rate <= 0 || rate * kSliceSeconds >= static_cast<double>(lane.slice.bytes)) continue;
    const auto smooth = static_cast<std::uint64_t>(rate * kSliceSeconds);
    lane.slice.bytes = std::min(lane.slice.bytes, std::max(smooth, kPacedSliceBytesMin));
  }
  return lane;
}

bool Engine::forked() const noexcept {
  return forks_ != forks.load(std::memory_order_relaxed);
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
  if (status == Status::Ok) status = check(*to, submission);
  if (status != Status::Ok) return status;
  const Load load = load_of(submission);
  status = room(*to, load);
  if (status != Status::Ok) return status;
  fill(to, submission);  // may throw: nothing is taken or published yet
  status = take(to, submission);
  if (status != Status::Ok) return status;
  *first_ticket = next_ticket_;
  next_ticket_ += static_cast<std::int64_t>(submission.after.size());
  to->unpolled_bytes.fetch_add(load.bytes, std::memory_order_relaxed);
  for (const Urgency urgency : kAllUrgencies) {
    GroupRing& ring = to->lane.ring(urgency);
    ring.publish_submitted(ring.submitted() + load.groups[static_cast<std::size_t>(urgency)]);
  }
  to->lane.wake_if_asleep(may_start(submission));
  return Status::Ok;
}

// Whether the lane has something to look at now: see Lane::wake_if_asleep.
bool Engine::may_start(const Submission& submission) const noexcept {
  return std::any_of(submission.after.begin(), submission.after.end(),
                     [this](std::int64_t after) { return turns_.ordered(after); });
}

Status Engine::check(const Side& side, const Submission& submission) {
  const std::size_t groups = submission.after.size();
  if (groups == 0) return fail(Status::Invalid, "submit: no group");
  if (submission.source.size() != submission.target.size()) {
    return fail(Status::Invalid, "submit: %zu sources and %zu targets", submission.source.size(),
                submission.target.size());
  }
  if (submission.offsets.size() != groups + 1 || submission.offsets.front() != 0 ||
      submission.offsets.back() != static_cast<std::int64_t>(submission.source.size())) {
    return fail(Status::Invalid, "submit: offsets are not %zu ascending from 0 to %zu", groups + 1,
                submission.source.size());
  }
  for (std::size_t group = 0; group < groups; ++group) {
    if (submission.offsets[group] < submission.offsets[group + 1]) continue;
    return fail(Status::Invalid, "submit: group %zu is without blocks, or offsets do not ascend",
                group);
  }
  for (const std::uint8_t flags : submission.flags) {
    if ((flags & ~kKnownFlags) != 0) {
      return fail(Status::Unsupported, "submit: flags %u, known are %u", flags, kKnownFlags);
    }
  }
  const Status status = check_range("source", submission.source, side.source_blocks);
  return status == Status::Ok ? check_range("target", submission.target, side.target_blocks)
                              : status;
}

Engine::Load Engine::load_of(const Submission& submission) const noexcept {
  Load load;
  load.bytes = submission.source.size() * config_.block_bytes;
  for (std::size_t group = 0; group < submission.after.size(); ++group)
    ++load.groups[static_cast<std::size_t>(urgency_of(submission, group))];
  return load;
}

// A submission larger than queue_bytes_max may go when it is alone, or it would never go. One that
// is eager throughout may fill half of the queue, so that what is urgent finds room.
Status Engine::room(const Side& side, const Load& load) const {
  const std::size_t groups = load.groups[0] + load.groups[1];
  if (groups > config_.queue_groups_max) {
    return fail(Status::TooLarge, "submit: %zu groups > queue_groups_max %zu", groups,
                config_.queue_groups_max);
  }
  std::uint64_t queued = 0;
  for (const Urgency urgency : kAllUrgencies) {
    const GroupRing& ring = side.lane.ring(urgency);
    queued += ring.submitted() - ring.polled();
  }
  const bool eager = load.groups[static_cast<std::size_t>(Urgency::Urgent)] == 0;
  const std::uint64_t share = eager ? 2 : 1;
  const bool full =
      queued > 0 &&
      (queued + groups > std::max<std::uint64_t>(1, config_.queue_groups_max / share) ||
       side.unpolled_bytes.load(std::memory_order_relaxed) + load.bytes >
           config_.queue_bytes_max / share);
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

void Engine::release(Side* side, Group* group) noexcept {
  side->source_book->drop_readers(group->source);
  side->target_book->drop_writers(group->target);
  side->unpolled_bytes.fetch_sub(group->bytes, std::memory_order_relaxed);
  keep_spare(group);
}

void Engine::keep_spare(Group* group) noexcept {
  if (spares_.size() == spares_.capacity()) return;
  spares_.push_back({.source = std::move(group->source), .target = std::move(group->target)});
}

void Engine::use_spare(Group* group) noexcept {
  if (spares_.empty()) return;
  group->source.swap(spares_.back().source);
  group->target.swap(spares_.back().target);
  spares_.pop_back();
}

// Writes the groups into free slots of the rings, for the lane to see once they are published.
void Engine::fill(Side* side, const Submission& submission) {
  std::array<std::uint64_t, kUrgencies> next{};
  for (const Urgency urgency : kAllUrgencies)
    next[static_cast<std::size_t>(urgency)] = side->lane.ring(urgency).submitted();
  for (std::size_t i = 0; i < submission.after.size(); ++i) {
    const Ids source = part(submission.source, submission, i);
    const Ids target = part(submission.target, submission, i);
    const Urgency urgency = urgency_of(submission, i);
    Group& group = side->lane.ring(urgency).at(next[static_cast<std::size_t>(urgency)]++);
    use_spare(&group);
    group.source.assign(source.begin(), source.end());
    group.target.assign(target.begin(), target.end());
    group.ticket = next_ticket_ + static_cast<std::int64_t>(i);
    group.after = submission.after[i];
    group.bytes = source.size() * config_.block_bytes;
    group.outcome = Outcome::Done;
    group.hold.store(Hold::Queued, std::memory_order_relaxed);
    group.abandoned.store(false, std::memory_order_relaxed);
    group.stamp.store(Group::kNotYet, std::memory_order_relaxed);
  }
}

Status Engine::mark(std::int64_t turn) {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  const std::lock_guard lock(front_);
  const Status status = usable();
  if (status != Status::Ok || turns_.ended(turn)) return status;
  turns_.mark(turn);
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
  // In turns, so that a small `tickets` starves no queue.
  const std::size_t turn = polls_++;
  for (std::size_t i = 0; i < sides_.size() * kUrgencies; ++i) {
    Side* const from = sides_[(turn + i / kUrgencies) % sides_.size()].get();
    GroupRing* const ring = &from->lane.ring(kAllUrgencies[(turn / 2 + i) % kUrgencies]);
    *count += poll_ring(from, ring, tickets.subspan(*count), outcomes.subspan(*count));
  }
  return Status::Ok;
}

std::size_t Engine::poll_ring(Side* side, GroupRing* ring, std::span<std::int64_t> tickets,
                              std::span<std::uint8_t> outcomes) {
  const std::uint64_t begin = ring->polled();
  const std::uint64_t end = std::min<std::uint64_t>(ring->landed(), begin + tickets.size());
  for (std::uint64_t sequence = begin; sequence < end; ++sequence) {
    Group& group = ring->at(sequence);
    tickets[sequence - begin] = group.ticket;
    outcomes[sequence - begin] =
        static_cast<std::uint8_t>(group.cancelled() ? Outcome::Cancelled : group.outcome);
    // One that was cancelled in the queue has been released then.
    if (group.hold.load(std::memory_order_relaxed) != Hold::Cancelled) release(side, &group);
  }
  ring->publish_polled(end);
  return end - begin;
}

bool Engine::unpolled_landing() const noexcept {
  return std::any_of(sides_.begin(), sides_.end(), [](const auto& side) {
    return std::any_of(kAllUrgencies.begin(), kAllUrgencies.end(), [&](Urgency urgency) {
      const GroupRing& ring = side->lane.ring(urgency);
      return ring.landed() != ring.polled();
    });
  });
}

bool Engine::idle() const noexcept {
  return std::all_of(sides_.begin(), sides_.end(), [](const auto& side) {
    return std::all_of(kAllUrgencies.begin(), kAllUrgencies.end(), [&](Urgency urgency) {
      const GroupRing& ring = side->lane.ring(urgency);
      return ring.submitted() == ring.polled();
    });
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
  constexpr auto kRelaxed = std::memory_order_relaxed;
  out->poisoned = from.lane.poisoned() ? 1 : 0;
  out->bytes = stats.bytes.load(kRelaxed);
  out->slices = stats.slices.load(kRelaxed);
  out->descriptors = stats.descriptors.load(kRelaxed);
  out->groups_done = stats.groups[DKV_DONE].load(kRelaxed);
  out->groups_failed = stats.groups[DKV_FAILED].load(kRelaxed);
  out->groups_cancelled = stats.groups[DKV_CANCELLED].load(kRelaxed);
  out->busy_ns = stats.busy_ns.load(kRelaxed);
  out->queued_groups = out->unpolled_groups = 0;
  for (const Urgency urgency : kAllUrgencies) {
    const GroupRing& ring = from.lane.ring(urgency);
    // Read against the order in which they grow, so that no difference is negative.
    const std::uint64_t polled = ring.polled();
    const std::uint64_t landed = ring.landed();
    const std::uint64_t submitted = ring.submitted();
    out->queued_groups += submitted - landed;
    out->unpolled_groups += submitted - polled;
  }
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

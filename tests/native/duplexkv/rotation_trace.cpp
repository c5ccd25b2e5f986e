#include "rotation_trace.hpp"

#include <algorithm>

namespace duplexkv_test {

Slots::Slots(std::int32_t count) : states_(static_cast<std::size_t>(count)) {
  for (std::int32_t slot = count; slot-- > 0;)
    free_.push_back(slot);
}

std::optional<std::int32_t> Slots::take() {
  if (free_.empty()) return std::nullopt;
  const std::int32_t slot = free_.back();
  free_.pop_back();
  states_[index(slot)].owned = true;
  return slot;
}

void Slots::give(std::int32_t slot) {
  if (slot < 0) return;
  State& state = states_[index(slot)];
  CHECK(state.owned);
  state.owned = false;
  if (state.uses == 0) free_.push_back(slot);
}

void Slots::unuse(std::int32_t slot) {
  State& state = states_[index(slot)];
  CHECK(state.uses > 0);
  if (--state.uses == 0 && !state.owned) free_.push_back(slot);
}

RotationTrace::RotationTrace(const TraceOptions& options)
    : options_(options),
      random_(options.seed),
      device_(kDevice * kBytes / sizeof(std::uint64_t)),
      host_(kHost * kBytes / sizeof(std::uint64_t)),
      computed_(std::make_shared<std::atomic<std::int64_t>>(-1)) {}

// The engine and what is missing of it.
void RotationTrace::build() {
  const Missing missing = options_.missing;
  const auto in_host = [this](std::uintptr_t at) {
    const auto base = reinterpret_cast<std::uintptr_t>(host_.data());
    return at >= base && at < base + kHost * kBytes;
  };
  VirtualGpuOptions gpu{.seed = options_.seed, .fail_call = options_.fail_call};
  const auto out = [in_host](const Slice& slice) { return in_host(slice.target[0]); };
  if (missing == Missing::TailAfterCompute) gpu.forgets_waits = out;
  if (missing == Missing::OrderInStream) gpu.reads_any = out;
  if (missing == Missing::CopyInAfterCompute) {
    gpu.forgets_waits = [out](const Slice& slice) { return !out(slice); };
  }
  if (missing == Missing::EagerAfterCompute) {
    gpu.seen_early = [this](Stream stream) { return stream == stream_; };
  }
  gpu_ = std::make_shared<VirtualGpu>(std::move(gpu));
  if (gpu_->create_stream(&stream_) != GpuStatus::Ok) stream_ = 0;
  EngineConfig config;
  auto* device = reinterpret_cast<std::byte*>(device_.data());
  auto* host = reinterpret_cast<std::byte*>(host_.data());
  config.device = {.base = device, .blocks = kDevice};
  config.host = {.base = host, .blocks = kHost};
  config.block_bytes = kBytes;
  if (options_.halves) {
    constexpr std::uint64_t kHalf = kBytes / 2;
    config.device_segments = {{device + kHalf, kBytes, kHalf}, {device, kBytes, kHalf}};
    config.host_segments = {{host + kHalf, kBytes, kHalf}, {host, kBytes, kHalf}};
  }
  config.slice = {.bytes = 6 * kBytes, .descriptors = 5};
  duplexkv::EngineParts parts;
  if (options_.streams) parts.gpu = gpu_;
  if (!options_.streams) parts.backends = host_backends(options_.host_threads);
  const bool cancel = missing == Missing::CancelWaits;
  if (missing == Missing::CopyInAfterCopyOut || cancel) {
    parts.device_book = std::make_unique<LaxBook>(kDevice, LaxBook::Rules{.write_read = !cancel});
  }
  if (missing == Missing::SlotValid || missing == Missing::SlotRead ||
      missing == Missing::OneWriter || cancel) {
    parts.host_book = std::make_unique<LaxBook>(
        kHost, LaxBook::Rules{.read_written = missing == Missing::SlotValid,
                              .write_read = missing == Missing::SlotRead,
                              .write_written = missing == Missing::OneWriter});
  }
  if (cancel) device_book_ = static_cast<LaxBook*>(parts.device_book.get());
  if (cancel) host_book_ = static_cast<LaxBook*>(parts.host_book.get());
  const Status status = Engine::create(config, std::move(parts), &engine_);
  CHECK(status == Status::Ok || options_.fail_call > 0);
  result_.created = status == Status::Ok && stream_ != 0;
}

TraceResult RotationTrace::run() {
  build();
  if (result_.created) {
    for (; turn_ < options_.turns && turn_ != options_.lose_turn; ++turn_)
      turn();
    if (turn_ == options_.lose_turn) {
      lose_and_look();
    } else {
      finish();
    }
  }
  close();
  result_.bad_reads = reads_->bad;
  result_.bad_eager = eager_.bad;
  result_.bad_tails = tails_.bad;
  result_.looks = reads_->looks + eager_.looks + tails_.looks;
  return result_;
}

void RotationTrace::turn() {
  if (turn_ == options_.poison_turn) CHECK(engine_->poison(Direction::D2H) == Status::Ok);
  land(poll_engine(*engine_));
  if (live_.size() < 8 && chance(40)) begin();
  for (const RequestPtr& request : std::vector(live_)) {
    if (request->phase == Phase::Running && chance(75)) compute(request.get(), chance(70));
  }
  const bool marked_first = chance(50);
  if (marked_first) end_compute_turn();
  for (const RequestPtr& request : std::vector(live_)) {
    if (request->phase == Phase::Running && !request->arriving) copy_eagerly(request);
  }
  if (chance(50)) rotate_out(any_of(Phase::Running));
  if (chance(70)) rotate_in(any_of(Phase::Rotary));
  if (!marked_first) end_compute_turn();
  if (options_.missing == Missing::CancelWaits) {
    cancel_carelessly();
  } else {
    use_early(any_of(Phase::Arriving));
  }
  if (options_.missing == Missing::Nothing && chance(20) && !air_.empty()) cancel_one();
  if (chance(50)) break_a_rule();
  if (chance(12) && !live_.empty()) end(live_[random_() % live_.size()]);
  if (chance(40)) wait_for_compute();
  if (chance(30)) {  // so that the lanes get their share of a busy machine
    bool any = false;
    CHECK(engine_->wait(std::chrono::milliseconds(2), &any) == Status::Ok);
  }
}

// The batch of this turn is in the stream.
void RotationTrace::end_compute_turn() {
  gpu_->run(stream_, [this, computed = computed_, turn = turn_] {
    if (!options_.streams) CHECK(engine_->mark(turn) == Status::Ok);
    computed->store(turn, std::memory_order_release);
    computed->notify_all();
  });
  open_turn_ = turn_ + 1;
  if (!options_.streams) return;
  const Status status = engine_->mark_stream(turn_, stream_);
  CHECK(status == Status::Ok || status == Status::Busy || options_.fail_call > 0);
}

void RotationTrace::wait_for_compute() {
  for (std::int64_t seen = computed_->load(std::memory_order_acquire); seen < turn_;
       seen = computed_->load(std::memory_order_acquire)) {
    computed_->wait(seen);
  }
}

// All copies end, and what is there is looked at.
void RotationTrace::finish() {
  turn_ = options_.turns;
  end_compute_turn();
  wait_for_compute();
  CHECK(engine_->mark(turn_) == Status::Ok);
  while (!air_.empty()) {
    bool any = false;
    CHECK(engine_->wait(std::chrono::seconds(60), &any) == Status::Ok && any);
    land(poll_engine(*engine_));
  }
  CHECK(poll_engine(*engine_).empty());
  look_at_end();
  for (const RequestPtr& request : std::vector(live_))
    end(request);
  if (options_.missing == Missing::Nothing) everything_is_free();
}

void RotationTrace::look_at_end() {
  ++turn_;
  for (const RequestPtr& request : live_) {
    CHECK(request->flights == 0 && request->phase != Phase::Leaving);
    for (const Block& block : request->blocks) {
      const bool here = block.device != kNone;
      if (options_.missing == Missing::Nothing) CHECK(here || block.synced == block.written);
      if (block.synced > 0) look_at_host(*request, block, &tails_);
    }
    if (request->phase == Phase::Running) read(request.get());
  }
  end_compute_turn();
  wait_for_compute();
}

// Nothing is left in the engine: no ticket, no slot in its books.
void RotationTrace::everything_is_free() {
  CHECK(device_slots_.all_free() && host_slots_.all_free());
  for (const Direction direction : {Direction::D2H, Direction::H2D}) {
    dkv_stats stats{};
    CHECK(engine_->stats(direction, &stats) == Status::Ok);
    CHECK(stats.unpolled_groups == 0 && stats.unpolled_bytes == 0 && stats.queued_groups == 0);
    if (stats.poisoned != 0) return;
  }
  Ids all(kDevice);
  for (std::int32_t slot = 0; slot < kDevice; ++slot)
    all[static_cast<std::size_t>(slot)] = slot;
  const std::vector<std::int64_t> offsets{0, kDevice};
  const std::vector<std::int64_t> after{-1};
  for (const Direction direction : {Direction::D2H, Direction::H2D}) {
    std::int64_t ticket = 0;
    CHECK(engine_->submit(direction, {all, all, offsets, after}, &ticket) == Status::Ok);
    bool any = false;
    while (poll_engine(*engine_).empty())
      CHECK(engine_->wait(std::chrono::seconds(60), &any) == Status::Ok && any);
  }
}

// The GPU is gone: every ticket is told, nothing more is taken, and what had arrived in host slots
// is still there.
void RotationTrace::lose_and_look() {
  gpu_->lose();
  // Both by a lane that asks for its copies and by the front that marks.
  const auto mark_lost = [this] {
    CHECK(engine_->mark_stream(options_.turns, stream_) == Status::Poisoned);
  };
  if (chance(50)) mark_lost();
  CHECK(engine_->mark(turn_) == Status::Ok);  // nobody waits for compute any more
  while (!air_.empty()) {
    bool any = false;
    CHECK(engine_->wait(std::chrono::seconds(60), &any) == Status::Ok && any);
    land(poll_engine(*engine_));
  }
  mark_lost();
  for (const RequestPtr& request : live_) {
    for (const Block& block : request->blocks) {
      if (block.synced > 0) look_at_host(*request, block, &tails_);
    }
  }
  const Ids slot{0};
  const std::vector<std::int64_t> offsets{0, 1};
  const std::vector<std::int64_t> after{-1};
  std::int64_t ticket = 0;
  CHECK(engine_->submit(Direction::D2H, {slot, slot, offsets, after}, &ticket) == Status::Poisoned);
}

void RotationTrace::close() {
  // Compute may call the engine, so it ends first.
  if (stream_ != 0) gpu_->drain(stream_);
  engine_.reset();
  if (stream_ != 0) gpu_->destroy_stream(stream_);
  CHECK(gpu_->alive() == 0);
}

void RotationTrace::land(const std::vector<Landed>& landed) {
  for (const Landed& item : landed) {
    auto found = air_.extract(item.ticket);
    CHECK(!found.empty());  // told once
    const Flight& flight = found.mapped();
    if (item.outcome == DKV_CANCELLED) ++result_.cancelled;
    if (item.outcome == DKV_FAILED) ++result_.failed;
    if (flight.forgotten) continue;
    for (const std::int32_t slot : flight.device)
      device_slots_.unuse(slot);
    for (const std::int32_t slot : flight.host)
      host_slots_.unuse(slot);
    --flight.request->flights;
    if (flight.request->ended) continue;
    const bool ok = item.outcome == DKV_DONE;
    if (flight.kind == Kind::In) {
      land_in(flight, ok);
    } else {
      land_out(flight, ok);
    }
  }
}

void RotationTrace::land_out(const Flight& flight, bool ok) {
  Request* const request = flight.request.get();
  for (std::size_t i = 0; i < flight.blocks.size(); ++i) {
    Block& block = request->blocks[flight.blocks[i]];
    if (block.host != flight.host[i]) continue;  // taken over by who broke a rule
    block.flying = false;
    if (ok) {
      block.synced = flight.tokens[i];
      look_at_host(*request, block, flight.kind == Kind::Eager ? &eager_ : &tails_);
    } else {
      block.synced = 0;
      request->failed = request->phase == Phase::Leaving;
    }
  }
  settle_leaving(request);
}

void RotationTrace::settle_leaving(Request* request) {
  if (request->phase != Phase::Leaving || request->flights > 0) return;
  if (request->failed) {
    request->phase = Phase::Running;  // nothing is lost: the blocks are still here
  } else {
    for (Block& block : request->blocks) {
      device_slots_.give(block.device);
      block.device = kNone;
    }
    request->phase = Phase::Rotary;
  }
  request->failed = false;
}

void RotationTrace::land_in(const Flight& flight, bool ok) {
  Request* const request = flight.request.get();
  request->arriving = false;
  if (!ok) {
    CHECK(request->phase == Phase::Arriving || options_.lose_turn >= 0);
    for (Block& block : request->blocks) {
      device_slots_.give(block.device);
      block.device = kNone;
    }
    request->phase = Phase::Rotary;
    return;
  }
  ++result_.rotations;
  request->phase = Phase::Running;
  if (!request->drops_host) return;
  for (Block& block : request->blocks) {
    host_slots_.give(block.host);
    block.host = kNone;
    block.synced = 0;
  }
}

}  // namespace duplexkv_test

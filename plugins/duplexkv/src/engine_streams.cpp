// The engine's dealings with the caller's streams, and with tickets one at a time.
#include <cinttypes>

#include "engine.hpp"

namespace duplexkv {
namespace {

constexpr Stream kLegacyStreams = 1;  // 0 and CU_STREAM_LEGACY: they wait for every other stream

}  // namespace

Engine::Place Engine::find(std::int64_t ticket) const noexcept {
  for (std::size_t direction = 0; direction < sides_.size(); ++direction) {
    Side* const side = sides_[direction].get();
    for (const Urgency urgency : {Urgency::Urgent, Urgency::Eager}) {
      Group* const group = side->lane.ring(urgency).find(ticket);
      if (group != nullptr) return {.direction = direction, .side = side, .group = group};
    }
  }
  return {};
}

Status Engine::check_ticket(const char* verb, std::int64_t ticket) const {
  if (ticket > 0 && ticket < next_ticket_) return Status::Ok;
  return fail(Status::Invalid, "%s: ticket %" PRId64 " was never given out", verb, ticket);
}

Status Engine::check_stream(const char* verb, Stream stream, bool in_graph) const {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  if (gpu_ == nullptr) {
    return fail(Status::Unsupported, "%s: the engine's backend has no streams", verb);
  }
  if (stream <= kLegacyStreams) {
    return fail(Status::Invalid, "%s: the legacy default stream orders nothing, use another", verb);
  }
  const bool capturing = gpu_->capturing(stream);
  if (capturing && !in_graph) {
    return fail(Status::Invalid,
                "%s: a graph is being captured from the stream; call it beside the launch", verb);
  }
  if (!capturing && in_graph) {
    return fail(Status::Invalid, "%s: external, but no graph is being captured from the stream",
                verb);
  }
  return Status::Ok;
}

Status Engine::stream_status(const char* verb, GpuStatus status) const {
  switch (status) {
    case GpuStatus::Ok:
      return Status::Ok;
    case GpuStatus::Failed:
      return fail(Status::Internal, "%s: the GPU refused an event", verb);
    case GpuStatus::Lost:
      break;
  }
  for (const auto& side : sides_)
    side->lane.poison();
  return fail(Status::Poisoned, "%s: the GPU is lost", verb);
}

Status Engine::mark_stream(std::int64_t turn, Stream stream) {
  Status status = check_stream("mark_stream", stream, false);
  if (status != Status::Ok) return status;
  const std::lock_guard lock(front_);
  status = usable();
  if (status != Status::Ok || turns_.ordered(turn)) return status;
  const GpuStatus recorded = turns_.record(turn, stream);
  if (recorded == GpuStatus::Failed && turns_.full()) return Status::Busy;
  status = stream_status("mark_stream", recorded);
  if (status != Status::Ok) return status;
  for (const auto& side : sides_)
    side->lane.wake_if_asleep(true);
  return Status::Ok;
}

Status Engine::stream_wait(std::int64_t ticket, Stream stream) {
  Status status = check_stream("stream_wait", stream, false);
  if (status != Status::Ok) return status;
  const std::lock_guard lock(front_);
  status = check_ticket("stream_wait", ticket);
  if (status != Status::Ok) return status;
  const Place place = find(ticket);
  if (place.group == nullptr) return Status::Ok;  // polled: the host has seen its end
  const std::uint64_t stamp = place.group->stamp.load(std::memory_order_acquire);
  if (place.group->cancelled() || stamp == Group::kNever) {
    return fail(Status::Invalid, "stream_wait: ticket %" PRId64 " will not arrive, poll tells",
                ticket);
  }
  if (stamp == Group::kNotYet) return Status::Busy;
  return stream_status("stream_wait", streams_[place.direction]->follow(stream, stamp));
}

Status Engine::graph_wait(Stream stream) {
  Status status = check_stream("stream_wait", stream, true);
  if (status != Status::Ok) return status;
  const std::lock_guard lock(front_);
  return stream_status("stream_wait", streams_[DKV_H2D]->follow_in_graph(stream));
}

Status Engine::cancel(std::int64_t ticket) {
  if (forked()) return fail(Status::Forked, "engine: made before a fork, not usable in the child");
  const std::lock_guard lock(front_);
  const Status status = check_ticket("cancel", ticket);
  if (status != Status::Ok) return status;
  const Place place = find(ticket);
  if (place.group == nullptr || place.group->cancelled()) return Status::Ok;
  if (place.group->leave_queue(Hold::Cancelled)) {
    release(place.side, place.group);  // nobody has touched its slots
    place.side->lane.wake_if_asleep(true);
  } else {
    // Copies cannot be called back: the books keep its slots until it is polled.
    place.group->abandoned.store(true, std::memory_order_relaxed);
  }
  return Status::Ok;
}

}  // namespace duplexkv

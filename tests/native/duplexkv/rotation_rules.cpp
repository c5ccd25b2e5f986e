// What a trace tries although it must not: with the rule in place the engine refuses, without it
// the bytes tell.
#include <algorithm>

#include "rotation_trace.hpp"

namespace duplexkv_test {

using duplexkv::fail;

Status LaxBook::take_readers(duplexkv::Ids ids) noexcept {
  for (const std::int32_t id : ids) {
    if (writers_[static_cast<std::size_t>(id)] > 0 && !lax_.read_written) {
      return fail(Status::Overlap, "lax: slot %d is written", id);
    }
  }
  for (const std::int32_t id : ids)
    ++readers_[static_cast<std::size_t>(id)];
  return Status::Ok;
}

Status LaxBook::take_writers(duplexkv::Ids ids) noexcept {
  for (const std::int32_t id : ids) {
    const auto slot = static_cast<std::size_t>(id);
    const bool refused =
        (readers_[slot] > 0 && !lax_.write_read) || (writers_[slot] > 0 && !lax_.write_written);
    if (refused) return fail(Status::Overlap, "lax: slot %d is in use", id);
  }
  for (const std::int32_t id : ids)
    ++writers_[static_cast<std::size_t>(id)];
  return Status::Ok;
}

void LaxBook::drop(duplexkv::Ids ids, std::vector<int>* uses) noexcept {
  for (const std::int32_t id : ids) {
    int& count = (*uses)[static_cast<std::size_t>(id)];
    count = std::max(0, count - 1);
  }
}

void LaxBook::drop_readers(duplexkv::Ids ids) noexcept {
  drop(ids, &readers_);
}

void LaxBook::drop_writers(duplexkv::Ids ids) noexcept {
  drop(ids, &writers_);
}

void LaxBook::forget(duplexkv::Ids ids) {
  for (const std::int32_t id : ids)
    readers_[static_cast<std::size_t>(id)] = writers_[static_cast<std::size_t>(id)] = 0;
}

// All of them, or the one that is missing.
void RotationTrace::break_a_rule() {
  constexpr std::array kRules{Missing::SlotValid, Missing::CopyInAfterCopyOut, Missing::SlotRead,
                              Missing::OneWriter};
  const bool all = options_.missing == Missing::Nothing;
  switch (all ? kRules[random_() % kRules.size()] : options_.missing) {
    case Missing::SlotValid:
      return read_a_slot_being_filled();
    case Missing::CopyInAfterCopyOut:
      return write_a_block_being_read();
    case Missing::SlotRead:
      return write_a_slot_being_read();
    case Missing::OneWriter:
      return write_a_slot_being_written();
    default:
      return;
  }
}

bool RotationTrace::accepted(Status status) {
  if (status == Status::Overlap) ++result_.refused;
  if (options_.missing != Missing::Nothing) return status == Status::Ok;
  CHECK(status == Status::Overlap || status == Status::Poisoned || status == Status::Busy);
  return false;
}

// A copy of a live request in that phase which the engine still holds to its slots.
const RotationTrace::Flight* RotationTrace::any_flight(Kind kind, Phase phase) {
  std::vector<const Flight*> found;
  for (const auto& [ticket, flight] : air_) {
    const bool fits = flight.kind == kind && !flight.cancelled && !flight.request->ended &&
                      flight.request->phase == phase;
    if (fits) found.push_back(&flight);
  }
  return found.empty() ? nullptr : found[random_() % found.size()];
}

// 8: resumes a request while its tail is on the way out.
void RotationTrace::read_a_slot_being_filled() {
  const Flight* const out = any_flight(Kind::Out, Phase::Leaving);
  if (out == nullptr) return;
  Flight flight{.kind = Kind::In, .request = out->request};
  if (!take_device(&flight)) return;
  const Status status = submit(flight);
  if (!accepted(status)) {
    for (const std::int32_t slot : flight.device)
      device_slots_.give(slot);
    return;
  }
  for (const Block& block : flight.request->blocks)
    device_slots_.give(block.device);
  come_in(flight);
}

// 8: resumes a request into a block that is still being copied out.
void RotationTrace::write_a_block_being_read() {
  const Flight* const out = any_flight(Kind::Out, Phase::Leaving);
  const RequestPtr rotary = any_of(Phase::Rotary);
  if (out == nullptr || rotary == nullptr) return;
  Block& block = out->request->blocks[out->blocks[0]];
  if (block.device != out->device[0]) return;
  Flight flight{.kind = Kind::In, .request = rotary};
  if (!take_device(&flight, block.device)) return;
  const Status status = submit(flight);
  if (!accepted(status)) {
    for (std::size_t i = 1; i < flight.device.size(); ++i)
      device_slots_.give(flight.device[i]);
    return;
  }
  block.device = kNone;
  come_in(flight);
}

// Some other request's full block that has no host slot yet.
bool RotationTrace::aim_at_slot(const Request* not_of, Flight* flight) {
  for (const RequestPtr& request : live_) {
    if (request.get() == not_of || request->phase != Phase::Running || request->arriving) continue;
    for (std::size_t index = 0; index < request->blocks.size(); ++index) {
      const Block& block = request->blocks[index];
      if (block.written < kTokens || block.host != kNone) continue;
      flight->request = request;
      flight->after = block.written_turn;
      add(flight, index);
      return true;
    }
  }
  return false;
}

// 11: fills a slot that is still being read by a request that comes back.
void RotationTrace::write_a_slot_being_read() {
  const Flight* const in = any_flight(Kind::In, Phase::Arriving);
  Flight flight{.kind = Kind::Eager};
  if (in == nullptr || !in->request->drops_host) return;
  Block& before = in->request->blocks[0];
  if (before.host != in->host[0] || !aim_at_slot(in->request.get(), &flight)) return;
  flight.host[0] = before.host;
  Block& block = flight.request->blocks[flight.blocks[0]];
  if (!accepted(submit(flight))) return;
  before.host = kNone;
  block.host = flight.host[0];
  block.flying = true;
}

// 12: a request ends while one of its blocks is copied out; its slot is filled for another one.
void RotationTrace::write_a_slot_being_written() {
  const Flight* const out = any_flight(Kind::Eager, Phase::Running);
  Flight flight{.kind = Kind::Eager};
  if (out == nullptr || !aim_at_slot(out->request.get(), &flight)) return;
  const std::int32_t slot = out->host[0];
  end(out->request);
  CHECK(!host_slots_.owned(slot));
  flight.host[0] = slot;
  Block& block = flight.request->blocks[flight.blocks[0]];
  if (!accepted(submit(flight))) return;
  host_slots_.take_over(slot);
  block.host = slot;
  block.flying = true;
}

}  // namespace duplexkv_test

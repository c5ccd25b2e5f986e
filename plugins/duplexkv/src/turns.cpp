#include "turns.hpp"

namespace duplexkv {

void Turns::mark(std::int64_t turn) noexcept {
  std::int64_t before = ended_.load(std::memory_order_relaxed);
  // Not one thread only: a lane that sees an event done says so too.
  while (before < turn && !ended_.compare_exchange_weak(before, turn, std::memory_order_seq_cst)) {
  }
}

GpuStatus Turns::record(std::int64_t turn, Stream stream) noexcept {
  if (ordered(turn)) return GpuStatus::Ok;
  look();
  const GpuStatus status = events_->record(stream, sequence(turn));
  if (status == GpuStatus::Ok) recorded_.store(turn, std::memory_order_seq_cst);
  return status;
}

GpuStatus Turns::wait(Stream waiter, std::int64_t turn, std::uint64_t* waited) noexcept {
  if (ended(turn)) return GpuStatus::Ok;
  const GpuStatus status = events_->wait(waiter, sequence(turn), waited);
  look();
  return status;
}

bool Turns::ended_or_lost(std::int64_t turn) noexcept {
  if (ended(turn)) return true;
  // A turn that is marked just now is not one with an event: without a GPU there is nobody to ask.
  if (!recorded(turn)) return false;
  return look() == Progress::Lost || ended(turn);
}

// What the GPU has ended, the host knows from now on.
Progress Turns::look() noexcept {
  const Progress progress = events_->poll();
  if (progress != Progress::Lost) mark(static_cast<std::int64_t>(events_->completed()) - 1);
  return progress;
}

}  // namespace duplexkv

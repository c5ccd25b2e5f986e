#include "timeline.hpp"

namespace duplexkv {

Timeline::Timeline(Gpu* gpu, std::size_t events_max) : gpu_(gpu), entries_(events_max) {}

Timeline::~Timeline() {
  for (const Entry& entry : entries_) {
    if (entry.made) gpu_->destroy_event(entry.event);
  }
  if (newest_.made) gpu_->destroy_event(newest_.event);
}

GpuStatus Timeline::record(Stream stream, std::uint64_t sequence) noexcept {
  const std::lock_guard lock(mutex_);
  if (next_ - oldest_ == entries_.size()) advance();
  if (lost_) return GpuStatus::Lost;
  if (next_ - oldest_ == entries_.size()) return GpuStatus::Failed;
  Entry& entry = this->entry(next_);
  if (!entry.made) {
    const GpuStatus status = gpu_->create_event(&entry.event);
    if (status != GpuStatus::Ok) return status;
    entry.made = true;
  }
  // First the one that graphs wait for: if it fails, nothing has been recorded.
  if (newest_.made) {
    const GpuStatus status = gpu_->record(newest_.event, stream);
    if (status != GpuStatus::Ok) return status;
  }
  const GpuStatus status = gpu_->record(entry.event, stream);
  if (status != GpuStatus::Ok) return status;
  entry.sequence = sequence;
  ++next_;
  return GpuStatus::Ok;
}

GpuStatus Timeline::wait(Stream waiter, std::uint64_t sequence, std::uint64_t* waited) noexcept {
  if (*waited >= sequence || completed() >= sequence) return GpuStatus::Ok;
  const std::lock_guard lock(mutex_);
  if (advance() == Progress::Lost) return GpuStatus::Lost;
  if (completed() >= sequence) return GpuStatus::Ok;
  for (std::uint64_t number = oldest_; number < next_; ++number) {
    const Entry& entry = this->entry(number);
    if (entry.sequence < sequence) continue;
    const GpuStatus status = gpu_->wait(waiter, entry.event);
    if (status == GpuStatus::Ok) *waited = entry.sequence;
    return status;
  }
  return GpuStatus::Failed;
}

GpuStatus Timeline::wait_external(Stream waiter, Stream stream) noexcept {
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  if (!newest_.made) {
    GpuStatus status = gpu_->create_event(&newest_.event);
    if (status != GpuStatus::Ok) return status;
    status = gpu_->record(newest_.event, stream);
    if (status != GpuStatus::Ok) {
      gpu_->destroy_event(newest_.event);
      return status;
    }
    newest_.made = true;
  }
  return gpu_->wait_external(waiter, newest_.event);
}

Progress Timeline::poll() noexcept {
  const std::lock_guard lock(mutex_);
  return advance();
}

bool Timeline::full() const noexcept {
  const std::lock_guard lock(mutex_);
  return next_ - oldest_ == entries_.size();
}

// Takes the done events out of the ring, oldest first.
Progress Timeline::advance() noexcept {
  while (!lost_ && oldest_ < next_) {
    const Entry& entry = this->entry(oldest_);
    const Progress progress = gpu_->query(entry.event);
    if (progress == Progress::Pending) return Progress::Pending;
    lost_ = progress != Progress::Done;
    if (lost_) break;
    ++oldest_;
    completed_.store(entry.sequence, std::memory_order_release);
  }
  return lost_ ? Progress::Lost : Progress::Done;
}

}  // namespace duplexkv

#include "stream_backend.hpp"

namespace duplexkv {
namespace {

Progress progress_of(GpuStatus status) noexcept {
  switch (status) {
    case GpuStatus::Ok:
      return Progress::Done;
    case GpuStatus::Failed:
      return Progress::Failed;
    case GpuStatus::Lost:
      break;
  }
  return Progress::Lost;
}

}  // namespace

GpuStatus StreamBackend::create(Gpu* gpu, Turns* turns, SourceOrder order,
                                std::unique_ptr<StreamBackend>* out) {
  Stream stream = 0;
  const GpuStatus status = gpu->create_stream(&stream);
  if (status != GpuStatus::Ok) return status;
  try {
    out->reset(new StreamBackend(gpu, turns, order, stream));
  } catch (...) {
    gpu->destroy_stream(stream);
    throw;
  }
  return status;
}

StreamBackend::~StreamBackend() {
  gpu_->destroy_stream(stream_);
}

Progress StreamBackend::order_behind(std::int64_t turn) noexcept {
  return progress_of(turns_->wait(stream_, turn, &waited_turns_));
}

Progress StreamBackend::submit(const Slice& slice, std::uint64_t sequence) noexcept {
  const GpuStatus status = gpu_->copy(stream_, slice, order_);
  if (status != GpuStatus::Ok) return progress_of(status);
  const GpuStatus recorded = slices_.record(stream_, sequence);
  if (recorded == GpuStatus::Ok) return Progress::Pending;
  return recorded == GpuStatus::Lost ? Progress::Lost : close_slice(sequence);
}

// The copies are in the stream without an event behind them. They must not be told of as long as
// they touch memory, so this once the lane waits for its stream.
Progress StreamBackend::close_slice(std::uint64_t sequence) noexcept {
  gpu_->drain(stream_);
  const GpuStatus again = slices_.record(stream_, sequence);
  return again == GpuStatus::Ok ? Progress::Pending : progress_of(again);
}

Progress StreamBackend::query(std::uint64_t sequence) noexcept {
  if (slices_.completed() >= sequence) return Progress::Done;
  if (slices_.poll() == Progress::Lost) return Progress::Lost;
  return slices_.completed() >= sequence ? Progress::Done : Progress::Pending;
}

void StreamBackend::drain() noexcept {
  gpu_->drain(stream_);
}

GpuStatus StreamBackend::follow(Stream waiter, std::uint64_t sequence) noexcept {
  std::uint64_t waited = 0;
  return slices_.wait(waiter, sequence, &waited);
}

GpuStatus StreamBackend::follow_in_graph(Stream waiter) noexcept {
  return slices_.wait_external(waiter, stream_);
}

}  // namespace duplexkv

// What the lanes ask of a GPU: streams, events and batches of copies, nothing else. Implemented by
// CUDA's driver, and by a virtual GPU in the tests, so that one ordering is tested on any machine.
//
// Calls never wait, except drain. A Lost status is sticky: nothing later will ever complete.
#pragma once

#include <cstdint>

#include "backend.hpp"
#include "duplexkv/registry.h"
#include "error.hpp"

namespace duplexkv {

using Stream = std::uintptr_t;  // CUstream, or one of the virtual GPU's
using Event = std::uintptr_t;   // CUevent, likewise

enum class GpuStatus : std::uint8_t {
  Ok,
  Failed,  // this call did nothing; the next may succeed
  Lost,
};

// When a copy may read its source.
enum class SourceOrder : std::uint8_t {
  InStream,  // behind all earlier work of its stream
  Any,       // at any time from the call on: only for memory nobody writes any more
};

class Gpu {
 public:
  Gpu() = default;
  virtual ~Gpu() = default;
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  virtual GpuStatus create_stream(Stream* out) noexcept = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;
  virtual GpuStatus create_event(Event* out) noexcept = 0;
  virtual void destroy_event(Event event) noexcept = 0;

  // The event stands for all work put into the stream so far.
  virtual GpuStatus record(Event event, Stream stream) noexcept = 0;
  // Later work of the stream starts behind what the event stood for at this call.
  virtual GpuStatus wait(Stream stream, Event event) noexcept = 0;
  // A node of the graph being captured from the stream: each launch waits for what the event stands
  // for then. Failed where there are no graphs.
  virtual GpuStatus wait_external(Stream /*stream*/, Event /*event*/) noexcept {
    return GpuStatus::Failed;
  }
  // Done, Pending or Lost.
  virtual Progress query(Event event) noexcept = 0;

  // Puts the copies of a slice into the stream; their order among each other is open. The slice's
  // arrays stay until an event recorded behind it is Done.
  virtual GpuStatus copy(Stream stream, const Slice& slice, SourceOrder order) noexcept = 0;

  // Puts copies into a caller's stream that a plan on the device decides, also while a graph is
  // captured from it. Unsupported where nothing reads such plans; Poisoned when the GPU is lost.
  virtual Status rotate(Stream /*stream*/, const dkv_rotation& /*rotation*/) noexcept {
    return no_rotations();
  }
  // Rows of such plans that were skipped so far, as far as the host can see.
  virtual Status rotation_refused(std::uint32_t /*direction*/, std::uint64_t* /*rows*/) noexcept {
    return no_rotations();
  }

  // Whether a graph is being captured from the stream: copies and plain records must keep out.
  virtual bool capturing(Stream stream) noexcept = 0;
  // Returns when all work of the stream has ended or the GPU is lost.
  virtual void drain(Stream stream) noexcept = 0;

 private:
  static Status no_rotations() noexcept {
    return fail(Status::Unsupported, "rotate: this backend has nothing that reads a plan");
  }
};

}  // namespace duplexkv

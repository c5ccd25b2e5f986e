// What moves the bytes of a slice. A lane owns one backend and calls it from the lane's thread
// only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace duplexkv {

// Descriptors to copy: bytes[i] from source[i] to target[i]. Ranges do not overlap; the memory and
// these arrays stay as they are until the slice has ended.
struct Slice {
  std::span<const std::uintptr_t> source;
  std::span<const std::uintptr_t> target;
  std::span<const std::size_t> bytes;
};

enum class Progress {
  Pending,
  Done,    // the bytes of this slice and of all before it are at their target
  Failed,  // this slice did not arrive; the next may
  Lost,    // nothing will arrive any more
};

class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // How many slices may be in the air; >= 1.
  [[nodiscard]] virtual std::size_t depth() const noexcept = 0;

  // Slices submitted from now on start behind the batch of `turn`, which the host has not seen
  // ended but a stream was marked with. Done, Failed (try again with the next slice) or Lost.
  virtual Progress order_behind(std::int64_t /*turn*/) noexcept { return Progress::Done; }

  // Starts a slice behind all earlier ones; `sequence` counts 1, 2, 3, ... May end it at once.
  virtual Progress submit(const Slice& slice, std::uint64_t sequence) noexcept = 0;

  // Asked for the oldest slice that was Pending. Does not wait.
  virtual Progress query(std::uint64_t sequence) noexcept = 0;

  // Returns when no slice touches memory any more, whatever became of it.
  virtual void drain() noexcept = 0;
};

struct HostBackendConfig {
  unsigned threads = 1;  // that copy, the lane's own among them; >= 1
  // Less of a slice for one thread is not worth waking it.
  std::uint64_t share_bytes_min = std::uint64_t{256} << 10;
  std::span<const std::byte> near;  // a pool: threads stay on the node it is on; empty: anywhere
};

// Copies in `submit`, on the lane's thread and `threads - 1` of its own. The reference for every
// other backend. Throws std::bad_alloc, std::system_error.
std::unique_ptr<Backend> make_host_backend(HostBackendConfig config = {});

}  // namespace duplexkv

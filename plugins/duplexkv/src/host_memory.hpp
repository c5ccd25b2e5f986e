// Page-locked memory of the host for hundreds of GB: one range of addresses that grows in steps, on
// the node nearest to the GPU.
//
// Three ways, the first that gives its first step: memory made by the driver on a node of the host;
// anonymous memory bound to the node and registered step by step (one registration of 512 GiB is
// too large for drivers, and each holds a lock while it runs); the driver's plain allocation, in
// one piece. What was taken is remembered piece by piece and given back in reverse.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda_device.hpp"

namespace duplexkv::cuda {

// The system's calls, so that tests can refuse them.
struct HostCalls {
  // Anonymous memory that is not there before it is touched; nullptr: refused.
  void* (*map)(std::size_t bytes);
  void (*unmap)(void* base, std::size_t bytes);
  // Binds a range to a node; 0 or errno.
  int (*bind)(void* base, std::size_t bytes, int node);
  // The node of the page at an address that has been touched; negative: not known.
  int (*node_of)(void* address);
};
const HostCalls& system_host_calls() noexcept;

enum class HostKind : std::uint8_t { NodeMemory, Registered, Allocated };

struct HostMemoryConfig {
  const Device* device = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t step_bytes = std::uint64_t{2} << 30;
  int node = -1;  // -1: the GPU's
  const char* nodes_folder = "/sys/devices/system/node";
  const HostCalls* calls = nullptr;  // nullptr: the system's
};

inline constexpr std::uint64_t kHostStepBytesMax = std::uint64_t{64} << 30;

// The node to use for `wanted` (-1: none in particular). Invalid for one that does not exist or has
// no CPUs: that is the memory of a GPU. Where the system tells of no nodes, -1.
Status check_node(const char* nodes_folder, int wanted, int* out);

class HostMemory {
 public:
  // Returns when the first step is ready; a thread makes the others. NoMemory when no way gives
  // even that. The device outlives the memory. Throws std::bad_alloc, std::system_error.
  static Status create(const HostMemoryConfig& config, std::unique_ptr<HostMemory>* out);
  // Nothing copies from it or to it any more.
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  // Asked for; of these the first ready_bytes() may be used.
  [[nodiscard]] std::uint64_t bytes() const noexcept { return config_.bytes; }
  [[nodiscard]] std::uint64_t ready_bytes() const noexcept {
    return ready_bytes_.load(std::memory_order_acquire);
  }
  [[nodiscard]] bool growing() const noexcept { return growing_.load(std::memory_order_acquire); }
  // No copy may cross a multiple of it, counted from base().
  [[nodiscard]] std::uint64_t chunk_bytes() const noexcept { return step_bytes_; }
  [[nodiscard]] HostKind kind() const noexcept { return kind_; }
  // Why it falls short of bytes(), or lies elsewhere than asked for; "" when all is well.
  [[nodiscard]] std::string note() const;
  // Returns when it grows no more.
  void finish();

 private:
  struct Chunk {
    std::uint64_t offset;
    std::uint64_t bytes;
    unsigned long long handle;  // of NodeMemory
  };

  explicit HostMemory(const HostMemoryConfig& config, int node);
  [[nodiscard]] std::uint64_t step_at(std::uint64_t offset) const noexcept;
  bool begin(HostKind kind);
  bool reserve(std::uint64_t granularity);
  bool step();
  Result step_node_memory(Chunk* chunk) noexcept;
  void check_place();
  void roll_back() noexcept;
  void grow() noexcept;
  void tell(const char* format, Result result, std::uint64_t bytes);

  HostMemoryConfig config_;
  const Driver& driver_;
  const HostCalls& calls_;
  int node_;
  HostKind kind_ = HostKind::NodeMemory;
  std::uint64_t step_bytes_ = 0;
  std::uint64_t range_bytes_ = 0;  // whole steps; 0: no range
  std::byte* base_ = nullptr;
  std::vector<Chunk> chunks_;
  std::atomic<std::uint64_t> ready_bytes_{0};
  std::atomic<bool> growing_{false};
  std::atomic<bool> stopping_{false};
  mutable std::mutex note_mutex_;
  std::string note_;
  std::mutex joining_;
  std::thread thread_;
};

}  // namespace duplexkv::cuda

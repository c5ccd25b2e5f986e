// A CUDA driver for tests: one GPU whose memory is this process's, copies that end at once, counts
// of everything that is alive, and calls that fail on purpose. Any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda_driver.hpp"
#include "cuda_rotation.hpp"

namespace duplexkv_test {

struct FakeCuda {
  // ---- what the GPU is, to be set before it is opened ----
  std::map<int, int> attributes{{duplexkv::cuda::kSmCount, 132},
                                {duplexkv::cuda::kCapabilityMajor, 9},
                                {duplexkv::cuda::kCapabilityMinor, 0},
                                {duplexkv::cuda::kHostPointerUsable, 1},
                                {duplexkv::cuda::kSharedBytesOptin, 227 << 10},
                                {duplexkv::cuda::kHostNumaId, 0},
                                {duplexkv::cuda::kHostNumaMemory, 1}};
  int devices = 1;
  int driver_version = 13000;
  std::uintptr_t device_base = 0;  // what pointer_get_attribute calls the GPU's
  std::uint64_t device_bytes = 0;
  std::uintptr_t pageable_from = UINTPTR_MAX;  // addresses it knows nothing of
  std::uint64_t node_bytes = UINT64_MAX;       // what memory_create gives in all

  // ---- faults ----
  std::int64_t fail_at = -1;  // the call of this number, from 0
  std::string fail_name;      // "" or the only call that counts for fail_at
  std::int64_t fail_count = 1;
  duplexkv::cuda::Result fail_with = duplexkv::cuda::kInvalidValue;
  bool lost = false;  // everything fails for good
  bool batch_loses_a_byte = false;
  bool events_pending = false;
  std::set<void*> capturing;

  // ---- what happened ----
  std::int64_t calls = 0;
  std::map<std::string, int> count;
  std::map<std::string, int> alive;  // streams, events, memory, ... by kind
  int alive_in_all() const;
  std::vector<int> orders;                              // of each batch
  std::vector<std::size_t> batches;                     // sizes
  std::vector<unsigned> grids;                          // blocks of each launch
  std::vector<duplexkv::cuda::RotationTask> rotations;  // what each was told
  std::vector<std::function<void()>> graph;             // rotations launched while captured
  unsigned stream_flags = 0;
  int stream_priority = 0;
  unsigned wait_flags = 0;
  int capture_mode = 0;                // of the calling thread, in effect: 0 global
  std::set<std::uint64_t> registered;  // sizes

  std::recursive_mutex mutex;
};

// A new driver; the one before is gone.
FakeCuda& reset_fake();
FakeCuda& fake();
const duplexkv::cuda::Driver& fake_driver();
// Anything that is not null: the fake loads any image.
const void* fake_image();

}  // namespace duplexkv_test

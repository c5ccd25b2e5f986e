#include "host_memory.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>

namespace duplexkv::cuda {
namespace {

// Of <linux/mempolicy.h>, which is not everywhere.
constexpr int kPolicyBind = 2;
constexpr std::size_t kBitsOfWord = 8 * sizeof(unsigned long);

void* system_map(std::size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  madvise(base, bytes, MADV_HUGEPAGE);
  return base;
}

void system_unmap(void* base, std::size_t bytes) {
  munmap(base, bytes);
}

int system_bind(void* base, std::size_t bytes, int node) {
  std::vector<unsigned long> mask(static_cast<std::size_t>(node) / kBitsOfWord + 1, 0);
  mask[static_cast<std::size_t>(node) / kBitsOfWord] =
      1UL << static_cast<std::size_t>(node) % kBitsOfWord;
  // The kernel reads one bit less than it is told: without the one more, the last node of the mask
  // could not be named.
  const std::size_t bits = mask.size() * kBitsOfWord + 1;
  return syscall(SYS_mbind, base, bytes, kPolicyBind, mask.data(), bits, 0) == 0 ? 0 : errno;
}

int system_node_of(void* address) {
  int status = -1;
  const long asked = syscall(SYS_move_pages, 0, 1UL, &address, nullptr, &status, 0);
  return asked == 0 ? status : -1;
}

constexpr HostCalls kSystemCalls{
    .map = system_map, .unmap = system_unmap, .bind = system_bind, .node_of = system_node_of};

std::uint64_t round_up(std::uint64_t value, std::uint64_t to) noexcept {
  return (value + to - 1) / to * to;
}

AllocationProp on_node(int node) noexcept {
  AllocationProp prop{};
  prop.type = kAllocationPinned;
  prop.location = {.type = kLocationHostNuma, .id = node};
  return prop;
}

}  // namespace

const HostCalls& system_host_calls() noexcept {
  return kSystemCalls;
}

Status check_node(const char* nodes_folder, int wanted, int* out) {
  *out = -1;
  if (wanted < 0) return Status::Ok;
  struct stat folder{};
  if (stat(nodes_folder, &folder) != 0) return Status::Ok;
  const std::string name = std::string(nodes_folder) + "/node" + std::to_string(wanted);
  std::ifstream file(name + "/cpulist");
  if (!file) return fail(Status::Invalid, "host_node: no node %d on this machine", wanted);
  std::string cpus;
  std::getline(file, cpus);
  if (cpus.empty()) {
    return fail(Status::Invalid, "host_node: node %d has no CPUs, it is the memory of a GPU",
                wanted);
  }
  *out = wanted;
  return Status::Ok;
}

Status HostMemory::create(const HostMemoryConfig& config, std::unique_ptr<HostMemory>* out) {
  if (config.bytes == 0) return fail(Status::Invalid, "host_bytes: must be > 0");
  if (config.bytes > std::uint64_t{1} << 46) {
    return fail(Status::TooLarge, "host_bytes: %" PRIu64 " > 2^46", config.bytes);
  }
  if (config.step_bytes == 0 || config.step_bytes > kHostStepBytesMax) {
    return fail(Status::Invalid, "host_step_bytes: %" PRIu64 " outside 1..%" PRIu64,
                config.step_bytes, kHostStepBytesMax);
  }
  const int wanted = config.node >= 0 ? config.node : config.device->facts().host_numa_node;
  int node = -1;
  const Status status = check_node(config.nodes_folder, wanted, &node);
  if (status != Status::Ok) return status;
  std::unique_ptr<HostMemory> memory(new HostMemory(config, node));
  for (const HostKind kind : {HostKind::NodeMemory, HostKind::Registered, HostKind::Allocated}) {
    if (!memory->begin(kind)) continue;
    memory->growing_.store(memory->ready_bytes() < config.bytes, std::memory_order_release);
    if (memory->growing()) memory->thread_ = std::thread([raw = memory.get()] { raw->grow(); });
    *out = std::move(memory);
    return Status::Ok;
  }
  return fail(Status::NoMemory, "host_bytes: %" PRIu64 " asked for, 0 given: %s", config.bytes,
              memory->note().c_str());
}

HostMemory::HostMemory(const HostMemoryConfig& config, int node)
    : config_(config),
      driver_(config.device->driver()),
      calls_(config.calls == nullptr ? kSystemCalls : *config.calls),
      node_(node) {}

HostMemory::~HostMemory() {
  stopping_.store(true, std::memory_order_relaxed);
  finish();
  roll_back();
}

void HostMemory::finish() {
  const std::lock_guard lock(joining_);
  if (thread_.joinable()) thread_.join();
}

std::string HostMemory::note() const {
  const std::lock_guard lock(note_mutex_);
  return note_;
}

void HostMemory::tell(const char* format, Result result, std::uint64_t bytes) {
  std::array<char, 192> line{};
  std::snprintf(line.data(), line.size(), format, bytes, name_of(driver_, result));
  const std::lock_guard lock(note_mutex_);
  if (!note_.empty()) note_ += "; ";
  note_ += line.data();
}

std::uint64_t HostMemory::step_at(std::uint64_t offset) const noexcept {
  return std::min(step_bytes_, range_bytes_ - offset);
}

// Reserves the range in one way and takes the first step; gives all back when that is refused.
bool HostMemory::begin(HostKind kind) {
  const Current current(*config_.device);
  if (current.result() != kSuccess) {
    tell("%" PRIu64 " bytes: the GPU cannot be used: %s", current.result(), config_.bytes);
    return false;
  }
  kind_ = kind;
  std::uint64_t granularity = std::uint64_t{2} << 20;
  if (kind == HostKind::NodeMemory) {
    if (node_ < 0 || !config_.device->facts().host_numa_memory) return false;
    std::size_t asked = 0;
    const AllocationProp prop = on_node(node_);
    const Result result = driver_.allocation_granularity(&asked, &prop, kGranularityRecommended);
    if (result != kSuccess || asked == 0) return false;
    granularity = asked;
  }
  if (reserve(granularity) && step()) return true;
  roll_back();
  return false;
}

bool HostMemory::reserve(std::uint64_t granularity) {
  const std::uint64_t all = round_up(config_.bytes, granularity);
  step_bytes_ =
      kind_ == HostKind::Allocated ? all : std::min(all, round_up(config_.step_bytes, granularity));
  range_bytes_ = all;
  if (kind_ == HostKind::NodeMemory) {
    DevicePtr address = 0;
    const Result result = driver_.address_reserve(&address, range_bytes_, granularity, 0, 0);
    if (result != kSuccess) {
      range_bytes_ = 0;
      tell("no range of %" PRIu64 " bytes: %s", result, all);
      return false;
    }
    base_ = reinterpret_cast<std::byte*>(address);  // NOLINT(performance-no-int-to-ptr)
  } else if (kind_ == HostKind::Registered) {
    base_ = static_cast<std::byte*>(calls_.map(range_bytes_));
    if (base_ == nullptr) {
      range_bytes_ = 0;
      tell("the system refused %" PRIu64 " bytes (%s)", kOutOfMemory, all);
      return false;
    }
    // Refused in many containers: the memory then lies where the system puts it.
    if (node_ >= 0 && calls_.bind(base_, range_bytes_, node_) != 0) {
      tell("%" PRIu64 " bytes not bound to the GPU's node: %s", kNotSupported, all);
    }
  }
  chunks_.reserve(static_cast<std::size_t>((range_bytes_ + step_bytes_ - 1) / step_bytes_));
  return true;
}

// Makes the next step ready. On the device; never throws once the range is reserved, but for notes.
bool HostMemory::step() {
  const std::uint64_t offset = chunks_.empty() ? 0 : chunks_.back().offset + chunks_.back().bytes;
  Chunk chunk{.offset = offset, .bytes = step_at(offset), .handle = 0};
  Result result = kSuccess;
  switch (kind_) {
    case HostKind::NodeMemory:
      result = step_node_memory(&chunk);
      break;
    case HostKind::Registered:
      result = driver_.host_register(base_ + offset, chunk.bytes, kHostPortableMapped);
      break;
    case HostKind::Allocated: {
      void* base = nullptr;
      result = driver_.host_alloc(&base, chunk.bytes, kHostPortableMapped);
      base_ = static_cast<std::byte*>(base);
      break;
    }
  }
  if (result != kSuccess) {
    tell("no further step of %" PRIu64 " bytes: %s", result, chunk.bytes);
    return false;
  }
  chunks_.push_back(chunk);
  if (offset == 0 && kind_ == HostKind::Registered) check_place();
  ready_bytes_.store(std::min(offset + chunk.bytes, config_.bytes), std::memory_order_release);
  return true;
}

Result HostMemory::step_node_memory(Chunk* chunk) noexcept {
  const AllocationProp prop = on_node(node_);
  const auto address = reinterpret_cast<DevicePtr>(base_) + chunk->offset;
  Result result = driver_.memory_create(&chunk->handle, chunk->bytes, &prop, 0);
  if (result != kSuccess) return result;
  result = driver_.memory_map(address, chunk->bytes, 0, chunk->handle, 0);
  if (result == kSuccess) {
    const std::array<AccessDesc, 2> access{
        {{.location = {.type = kLocationHostNuma, .id = node_}, .flags = kAccessReadWrite},
         {.location = {.type = kLocationDevice, .id = config_.device->facts().ordinal},
          .flags = kAccessReadWrite}}};
    result = driver_.memory_set_access(address, chunk->bytes, access.data(), access.size());
    if (result != kSuccess) driver_.memory_unmap(address, chunk->bytes);
  }
  if (result != kSuccess) driver_.memory_release(chunk->handle);
  return result;
}

// A registration has touched every page: they lie where they will stay.
void HostMemory::check_place() {
  if (node_ < 0) return;
  const int node = calls_.node_of(base_);
  if (node >= 0 && node != node_) {
    tell("memory is not on the GPU's node but on node %" PRIu64 " (%s)", kNotSupported,
         static_cast<std::uint64_t>(node));
  }
}

void HostMemory::roll_back() noexcept {
  const Current current(*config_.device);
  for (; !chunks_.empty(); chunks_.pop_back()) {
    const Chunk& chunk = chunks_.back();
    const auto address = reinterpret_cast<DevicePtr>(base_) + chunk.offset;
    switch (kind_) {
      case HostKind::NodeMemory:
        driver_.memory_unmap(address, chunk.bytes);
        driver_.memory_release(chunk.handle);
        break;
      case HostKind::Registered:
        driver_.host_unregister(base_ + chunk.offset);
        break;
      case HostKind::Allocated:
        driver_.host_free(base_);
        break;
    }
  }
  if (range_bytes_ != 0 && kind_ == HostKind::NodeMemory) {
    driver_.address_free(reinterpret_cast<DevicePtr>(base_), range_bytes_);
  }
  if (range_bytes_ != 0 && kind_ == HostKind::Registered) calls_.unmap(base_, range_bytes_);
  range_bytes_ = 0;
  base_ = nullptr;
  ready_bytes_.store(0, std::memory_order_release);
}

void HostMemory::grow() noexcept {
  try {
    const Current current(*config_.device);
    if (current.result() != kSuccess) {
      tell("%" PRIu64 " bytes: the GPU cannot be used: %s", current.result(), config_.bytes);
    }
    while (current.result() == kSuccess && ready_bytes() < config_.bytes &&
           !stopping_.load(std::memory_order_relaxed)) {
      if (!step()) break;
    }
  } catch (const std::bad_alloc&) {
    // Not even memory for a note: what is ready stays ready.
    stopping_.store(true, std::memory_order_relaxed);
  }
  growing_.store(false, std::memory_order_release);
}

}  // namespace duplexkv::cuda

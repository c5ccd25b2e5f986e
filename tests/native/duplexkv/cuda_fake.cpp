#include "cuda_fake.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "../check.hpp"
#include "cuda_pieces.hpp"

namespace duplexkv_test {
namespace {

using namespace duplexkv::cuda;

std::unique_ptr<FakeCuda> state;

thread_local std::vector<void*> contexts;
thread_local int thread_capture_mode = 0;

int context_of_the_gpu = 0;
int function_register = 0;
int function_bulk = 0;
int function_rotate = 0;
int image = 0;

// Counts a call, and says whether it is to fail.
class Call {
 public:
  explicit Call(const char* name) : lock_(state->mutex) {
    ++state->count[name];
    if (state->lost) {
      result_ = kIllegalAddress;
      return;
    }
    if (!state->fail_name.empty() && state->fail_name != name) return;
    const std::int64_t number = state->calls++;
    if (state->fail_at >= 0 && number >= state->fail_at &&
        number < state->fail_at + state->fail_count) {
      result_ = state->fail_with;
    }
  }
  Result result() const { return result_; }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  Result result_ = kSuccess;
};

#define FAKE(name)        \
  const Call call(#name); \
  if (call.result() != kSuccess) return call.result()

void born(const char* kind) {
  ++state->alive[kind];
}
void gone(const char* kind) {
  CHECK(--state->alive[kind] >= 0);
}
void on_the_gpu() {
  CHECK(!contexts.empty() && contexts.back() == &context_of_the_gpu);
}
void* address(DevicePtr value) {
  return reinterpret_cast<void*>(value);
}

Result get_error_name(Result result, const char** name) {
  *name = result == kIllegalAddress ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OF_THE_FAKE";
  return kSuccess;
}
Result init(unsigned) {
  FAKE(init);
  return kSuccess;
}
Result driver_get_version(int* version) {
  FAKE(driver_get_version);
  *version = state->driver_version;
  return kSuccess;
}
Result device_get_count(int* count) {
  FAKE(device_get_count);
  *count = state->devices;
  return kSuccess;
}
Result device_get(int* device, int ordinal) {
  FAKE(device_get);
  *device = ordinal + 40;
  return kSuccess;
}
Result device_get_name(char* name, int bytes, int) {
  FAKE(device_get_name);
  std::strncpy(name, "Fake", static_cast<std::size_t>(bytes));
  return kSuccess;
}
Result device_get_uuid(Uuid* uuid, int) {
  FAKE(device_get_uuid);
  for (int i = 0; i < 16; ++i)
    uuid->bytes[i] = static_cast<unsigned char>(i * 16 + 1);
  return kSuccess;
}
Result device_get_attribute(int* value, int attribute, int) {
  FAKE(device_get_attribute);
  const auto found = state->attributes.find(attribute);
  if (found == state->attributes.end()) return kInvalidValue;
  *value = found->second;
  return kSuccess;
}
Result primary_retain(void** context, int device) {
  FAKE(primary_retain);
  CHECK(device >= 40);
  *context = &context_of_the_gpu;
  born("context");
  return kSuccess;
}
Result primary_release(int device) {
  const Call call("primary_release");
  CHECK(device >= 40);
  gone("context");
  return kSuccess;
}
Result context_get_current(void** context) {
  FAKE(context_get_current);
  *context = contexts.empty() ? nullptr : contexts.back();
  return kSuccess;
}
Result context_push(void* context) {
  FAKE(context_push);
  contexts.push_back(context);
  return kSuccess;
}
Result context_pop(void** context) {
  const Call call("context_pop");
  CHECK(!contexts.empty());
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
Result priority_range(int* least, int* greatest) {
  FAKE(priority_range);
  *least = 0;
  *greatest = -5;
  return kSuccess;
}
Result exchange_capture_mode(int* mode) {
  const Call call("exchange_capture_mode");
  std::swap(*mode, thread_capture_mode);
  state->capture_mode = thread_capture_mode;
  return kSuccess;
}
Result stream_create(void** stream, unsigned flags, int priority) {
  FAKE(stream_create);
  on_the_gpu();
  state->stream_flags = flags;
  state->stream_priority = priority;
  *stream = std::malloc(64);
  born("stream");
  return kSuccess;
}
Result stream_destroy(void* stream) {
  const Call call("stream_destroy");
  std::free(stream);
  gone("stream");
  return kSuccess;
}
Result stream_synchronize(void*) {
  FAKE(stream_synchronize);
  on_the_gpu();
  return kSuccess;
}
Result stream_wait_event(void* stream, void* event, unsigned flags) {
  FAKE(stream_wait_event);
  on_the_gpu();
  CHECK(stream != nullptr && event != nullptr);
  state->wait_flags = flags;
  return kSuccess;
}
Result stream_is_capturing(void* stream, int* status) {
  FAKE(stream_is_capturing);
  *status = state->capturing.count(stream) != 0 ? 1 : 0;
  return kSuccess;
}
Result event_create(void** event, unsigned flags) {
  FAKE(event_create);
  on_the_gpu();
  CHECK(flags == kEventNoTiming);
  *event = std::malloc(64);
  born("event");
  return kSuccess;
}
Result event_destroy(void* event) {
  const Call call("event_destroy");
  std::free(event);
  gone("event");
  return kSuccess;
}
Result event_record(void* event, void* stream) {
  FAKE(event_record);
  on_the_gpu();
  CHECK(event != nullptr && stream != nullptr);
  return kSuccess;
}
Result event_query(void*) {
  FAKE(event_query);
  // A query from another thread would break a capture in global mode.
  CHECK(thread_capture_mode == kCaptureRelaxed);
  return state->events_pending ? kNotReady : kSuccess;
}
Result memcpy_async(DevicePtr target, DevicePtr source, std::size_t bytes, void* stream) {
  FAKE(memcpy_async);
  on_the_gpu();
  CHECK(stream != nullptr);
  std::memcpy(address(target), address(source), bytes);
  return kSuccess;
}
Result memcpy_batch(DevicePtr* targets, DevicePtr* sources, std::size_t* sizes, std::size_t count,
                    CopyAttributes* attributes, std::size_t* firsts, std::size_t groups,
                    std::size_t* failed, void* stream) {
  FAKE(memcpy_batch);
  on_the_gpu();
  CHECK(count > 0 && count <= 4096 && groups == 1 && firsts[0] == 0 && failed != nullptr);
  CHECK(stream != nullptr && attributes->source_order != 0);
  if (state->capturing.count(stream) != 0) return kCaptureUnsupported;
  state->orders.push_back(attributes->source_order);
  state->batches.push_back(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t lost = state->batch_loses_a_byte && i == count / 2 ? 1 : 0;
    std::memcpy(address(targets[i]), address(sources[i]), sizes[i] - lost);
  }
  return kSuccess;
}
Result memory_alloc(DevicePtr* out, std::size_t bytes) {
  FAKE(memory_alloc);
  on_the_gpu();
  *out = reinterpret_cast<DevicePtr>(std::calloc(1, bytes));
  born("memory");
  return kSuccess;
}
Result memory_free(DevicePtr memory) {
  const Call call("memory_free");
  std::free(address(memory));
  gone("memory");
  return kSuccess;
}
Result host_alloc(void** out, std::size_t bytes, unsigned flags) {
  FAKE(host_alloc);
  on_the_gpu();
  CHECK(flags == kHostPortableMapped);
  *out = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  born("host memory");
  return kSuccess;
}
Result host_free(void* memory) {
  const Call call("host_free");
  std::free(memory);
  gone("host memory");
  return kSuccess;
}
Result host_register(void* base, std::size_t bytes, unsigned) {
  FAKE(host_register);
  on_the_gpu();
  std::memset(base, 0, 1);
  state->registered.insert(bytes);
  born("registration");
  return kSuccess;
}
Result host_unregister(void*) {
  const Call call("host_unregister");
  gone("registration");
  return kSuccess;
}
Result pointer_get_attribute(void* out, int attribute, DevicePtr pointer) {
  FAKE(pointer_get_attribute);
  CHECK(attribute == kMemoryTypeAttribute);
  if (pointer >= state->pageable_from) return kInvalidValue;
  const bool device = pointer - state->device_base < state->device_bytes;
  *static_cast<unsigned*>(out) = device ? kMemoryTypeDevice : kMemoryTypeHost;
  return kSuccess;
}
Result address_reserve(DevicePtr* out, std::size_t bytes, std::size_t, DevicePtr,
                       unsigned long long) {
  FAKE(address_reserve);
  void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(base != MAP_FAILED);
  *out = reinterpret_cast<DevicePtr>(base);
  born("range");
  return kSuccess;
}
Result address_free(DevicePtr base, std::size_t bytes) {
  const Call call("address_free");
  CHECK(state->alive["mapping"] == 0);
  munmap(address(base), bytes);
  gone("range");
  return kSuccess;
}
Result memory_create(unsigned long long* handle, std::size_t bytes, const AllocationProp* prop,
                     unsigned long long) {
  FAKE(memory_create);
  CHECK(prop->type == kAllocationPinned && prop->location.type == kLocationHostNuma);
  if (bytes > state->node_bytes) return kOutOfMemory;
  state->node_bytes -= bytes;
  *handle = bytes;
  born("handle");
  return kSuccess;
}
Result memory_release(unsigned long long) {
  const Call call("memory_release");
  gone("handle");
  return kSuccess;
}
Result memory_map(DevicePtr, std::size_t bytes, std::size_t offset, unsigned long long handle,
                  unsigned long long) {
  FAKE(memory_map);
  CHECK(offset == 0 && handle == bytes);
  born("mapping");
  return kSuccess;
}
Result memory_unmap(DevicePtr, std::size_t) {
  const Call call("memory_unmap");
  gone("mapping");
  return kSuccess;
}
Result memory_set_access(DevicePtr base, std::size_t bytes, const AccessDesc* access,
                         std::size_t count) {
  FAKE(memory_set_access);
  CHECK(count == 2 && access[0].location.type == kLocationHostNuma &&
        access[1].location.type == kLocationDevice);
  CHECK(mprotect(address(base), bytes, PROT_READ | PROT_WRITE) == 0);
  return kSuccess;
}
Result allocation_granularity(std::size_t* out, const AllocationProp*, int) {
  FAKE(allocation_granularity);
  *out = std::size_t{2} << 20;
  return kSuccess;
}
Result module_load(void** module, const void* loaded) {
  FAKE(module_load);
  on_the_gpu();
  CHECK(loaded == &image);
  *module = std::malloc(16);
  born("module");
  return kSuccess;
}
Result module_unload(void* module) {
  const Call call("module_unload");
  std::free(module);
  gone("module");
  return kSuccess;
}
Result module_get_function(void** function, void*, const char* name) {
  FAKE(module_get_function);
  const std::map<std::string, void*> known{{"dkv_copy_register", &function_register},
                                           {"dkv_copy_bulk", &function_bulk},
                                           {"dkv_rotate", &function_rotate}};
  CHECK(known.count(name) == 1);
  *function = known.at(name);
  return kSuccess;
}
Result function_set_attribute(void* function, int attribute, int value) {
  FAKE(function_set_attribute);
  CHECK(function == &function_bulk && attribute == kMaxDynamicSharedBytes);
  return value <= state->attributes[kSharedBytesOptin] ? kSuccess : kInvalidValue;
}

// What a rotation does, the last warp first.
void rotate(const RotationTask& task, unsigned blocks) {
  const unsigned warps = blocks * (kRegisterThreads / kWarpLanes);
  for (unsigned warp = warps; warp-- > 0;) {
    std::uint64_t refused = 0;
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
      refused = rotate_share(task, warp, warps, lane, kWarpLanes);
    *static_cast<std::uint64_t*>(address(task.refused)) += refused;
  }
}

// What the kernels do, block by block and lane by lane.
Result launch(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
              unsigned, unsigned shared, void* stream, void** parameters, void**) {
  FAKE(launch);
  on_the_gpu();
  CHECK(stream != nullptr && blocks > 0);
  state->grids.push_back(blocks);
  if (function == &function_rotate) {
    CHECK(threads == kRegisterThreads && shared == 0);
    const RotationTask task = *static_cast<const RotationTask*>(parameters[0]);
    state->rotations.push_back(task);
    if (state->capturing.count(stream) != 0) {
      state->graph.push_back([task, blocks] { rotate(task, blocks); });
    } else {
      rotate(task, blocks);
    }
    return kSuccess;
  }
  const auto* pieces = static_cast<const Piece*>(address(*static_cast<DevicePtr*>(parameters[0])));
  std::uint32_t bulk = 0;
  std::uint32_t count = *static_cast<std::uint32_t*>(parameters[1]);
  if (function == &function_bulk) {
    bulk = count;
    count = *static_cast<std::uint32_t*>(parameters[2]);
    const std::uint32_t stages = *static_cast<std::uint32_t*>(parameters[3]);
    CHECK(threads == kBulkThreads && shared == ring_bytes(stages));
    CHECK(stages >= kStagesMin && stages <= kStagesMax);
  } else {
    CHECK(function == &function_register && threads == kRegisterThreads && shared == 0);
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    CHECK(pieces[i].bytes > 0 && pieces[i].bytes <= kPieceBytes);
    if (i < bulk) {
      CHECK((pieces[i].source | pieces[i].target | pieces[i].bytes) % kBulkBytes == 0);
    }
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
      copy_piece(pieces[i], lane, kWarpLanes);
  }
  return kSuccess;
}

Driver make_driver() {
  Driver driver;
#define DUPLEXKV_FAKE(member, symbol, version, parameters) driver.member = member;
  DUPLEXKV_CUDA_CALLS(DUPLEXKV_FAKE)
  DUPLEXKV_CUDA_OPTIONAL_CALLS(DUPLEXKV_FAKE)
#undef DUPLEXKV_FAKE
  return driver;
}

}  // namespace

int FakeCuda::alive_in_all() const {
  int sum = 0;
  for (const auto& [kind, number] : alive)
    sum += number;
  return sum;
}

FakeCuda& reset_fake() {
  state = std::make_unique<FakeCuda>();
  return *state;
}

FakeCuda& fake() {
  return *state;
}

const Driver& fake_driver() {
  static const Driver driver = make_driver();
  return driver;
}

const void* fake_image() {
  return &image;
}

}  // namespace duplexkv_test

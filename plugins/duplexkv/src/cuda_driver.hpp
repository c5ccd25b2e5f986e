// CUDA's driver as a table of functions, found at run time: nothing here needs CUDA to build or to
// load. Tests put a driver of their own behind the same table.
//
// The types stand for those of cuda.h, which is not included; cuda_abi_check.cpp compares them with
// it, size by size and number by number, in every build that has the header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "error.hpp"
#include "gpu.hpp"

namespace duplexkv::cuda {

using Result = int;
using DevicePtr = unsigned long long;

struct Location {
  int type;
  int id;
};

struct CopyAttributes {
  int source_order;
  Location source_hint;
  Location target_hint;
  unsigned flags;
};

struct AllocationProp {
  int type;
  int handle_types;
  Location location;
  void* windows_only;
  unsigned char flags[8];
};

struct AccessDesc {
  Location location;
  int flags;
};

struct Uuid {
  unsigned char bytes[16];
};

// Results this library tells apart.
inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kNotReady = 600;
inline constexpr Result kIllegalAddress = 700;
inline constexpr Result kNotSupported = 801;
inline constexpr Result kCaptureUnsupported = 900;

inline constexpr int kLocationDevice = 1;
inline constexpr int kLocationHostNuma = 3;
inline constexpr int kAllocationPinned = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kSourceOrderStream = 1;
inline constexpr int kSourceOrderAny = 3;
inline constexpr unsigned kPreferOverlap = 1;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventNoTiming = 2;
inline constexpr unsigned kEventExternal = 1;  // of waits and of records, inside a capture
inline constexpr int kCaptureRelaxed = 2;
inline constexpr unsigned kHostPortableMapped = 3;  // of registrations and of allocations
inline constexpr int kMemoryTypeAttribute = 2;
inline constexpr unsigned kMemoryTypeHost = 1;
inline constexpr unsigned kMemoryTypeDevice = 2;
inline constexpr int kMaxDynamicSharedBytes = 8;  // attribute of a function
inline constexpr int kGranularityRecommended = 1;

// Attributes of a device.
inline constexpr int kSmCount = 16;
inline constexpr int kCapabilityMajor = 75;
inline constexpr int kCapabilityMinor = 76;
inline constexpr int kHostPointerUsable = 91;
inline constexpr int kSharedBytesOptin = 97;
inline constexpr int kUsesHostPageTables = 100;
inline constexpr int kHostNumaId = 134;
inline constexpr int kHostNumaMemory = 141;

// X(member, symbol, first CUDA version with this signature, parameters). The version is what is
// asked for, whatever newer signature a driver also has: a batch of copies has 9 parameters here.
#define DUPLEXKV_CUDA_CALLS(X)                                                                   \
  X(get_error_name, cuGetErrorName, 6000, (Result, const char**))                                \
  X(init, cuInit, 2000, (unsigned))                                                              \
  X(driver_get_version, cuDriverGetVersion, 2020, (int*))                                        \
  X(device_get_count, cuDeviceGetCount, 2000, (int*))                                            \
  X(device_get, cuDeviceGet, 2000, (int*, int))                                                  \
  X(device_get_name, cuDeviceGetName, 2000, (char*, int, int))                                   \
  X(device_get_uuid, cuDeviceGetUuid, 11040, (Uuid*, int))                                       \
  X(device_get_attribute, cuDeviceGetAttribute, 2000, (int*, int, int))                          \
  X(primary_retain, cuDevicePrimaryCtxRetain, 7000, (void**, int))                               \
  X(primary_release, cuDevicePrimaryCtxRelease, 11000, (int))                                    \
  X(context_get_current, cuCtxGetCurrent, 4000, (void**))                                        \
  X(context_push, cuCtxPushCurrent, 4000, (void*))                                               \
  X(context_pop, cuCtxPopCurrent, 4000, (void**))                                                \
  X(priority_range, cuCtxGetStreamPriorityRange, 5050, (int*, int*))                             \
  X(exchange_capture_mode, cuThreadExchangeStreamCaptureMode, 10010, (int*))                     \
  X(stream_create, cuStreamCreateWithPriority, 5050, (void**, unsigned, int))                    \
  X(stream_destroy, cuStreamDestroy, 4000, (void*))                                              \
  X(stream_synchronize, cuStreamSynchronize, 2000, (void*))                                      \
  X(stream_wait_event, cuStreamWaitEvent, 3020, (void*, void*, unsigned))                        \
  X(stream_is_capturing, cuStreamIsCapturing, 10000, (void*, int*))                              \
  X(event_create, cuEventCreate, 2000, (void**, unsigned))                                       \
  X(event_destroy, cuEventDestroy, 4000, (void*))                                                \
  X(event_record, cuEventRecord, 2000, (void*, void*))                                           \
  X(event_query, cuEventQuery, 2000, (void*))                                                    \
  X(memcpy_async, cuMemcpyAsync, 4000, (DevicePtr, DevicePtr, std::size_t, void*))               \
  X(memory_alloc, cuMemAlloc, 3020, (DevicePtr*, std::size_t))                                   \
  X(memory_free, cuMemFree, 3020, (DevicePtr))                                                   \
  X(host_alloc, cuMemHostAlloc, 2020, (void**, std::size_t, unsigned))                           \
  X(host_free, cuMemFreeHost, 2000, (void*))                                                     \
  X(host_register, cuMemHostRegister, 6050, (void*, std::size_t, unsigned))                      \
  X(host_unregister, cuMemHostUnregister, 4000, (void*))                                         \
  X(pointer_get_attribute, cuPointerGetAttribute, 4000, (void*, int, DevicePtr))                 \
  X(address_reserve, cuMemAddressReserve, 10020,                                                 \
    (DevicePtr*, std::size_t, std::size_t, DevicePtr, unsigned long long))                       \
  X(address_free, cuMemAddressFree, 10020, (DevicePtr, std::size_t))                             \
  X(memory_create, cuMemCreate, 10020,                                                           \
    (unsigned long long*, std::size_t, const AllocationProp*, unsigned long long))               \
  X(memory_release, cuMemRelease, 10020, (unsigned long long))                                   \
  X(memory_map, cuMemMap, 10020,                                                                 \
    (DevicePtr, std::size_t, std::size_t, unsigned long long, unsigned long long))               \
  X(memory_unmap, cuMemUnmap, 10020, (DevicePtr, std::size_t))                                   \
  X(memory_set_access, cuMemSetAccess, 10020,                                                    \
    (DevicePtr, std::size_t, const AccessDesc*, std::size_t))                                    \
  X(allocation_granularity, cuMemGetAllocationGranularity, 10020,                                \
    (std::size_t*, const AllocationProp*, int))                                                  \
  X(module_load, cuModuleLoadData, 2000, (void**, const void*))                                  \
  X(module_unload, cuModuleUnload, 2000, (void*))                                                \
  X(module_get_function, cuModuleGetFunction, 2000, (void**, void*, const char*))                \
  X(function_set_attribute, cuFuncSetAttribute, 9000, (void*, int, int))                         \
  X(launch, cuLaunchKernel, 4000,                                                                \
    (void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, \
     void**))

// Drivers older than 12.8 are used without it.
#define DUPLEXKV_CUDA_OPTIONAL_CALLS(X)                                                \
  X(memcpy_batch, cuMemcpyBatchAsync, 12080,                                           \
    (DevicePtr*, DevicePtr*, std::size_t*, std::size_t, CopyAttributes*, std::size_t*, \
     std::size_t, std::size_t*, void*))

struct Driver {
  // NOLINTNEXTLINE(bugprone-macro-parentheses): a type cannot stand in parentheses
#define DUPLEXKV_MEMBER(member, symbol, version, parameters) Result(*member) parameters = nullptr;
  DUPLEXKV_CUDA_CALLS(DUPLEXKV_MEMBER)
  DUPLEXKV_CUDA_OPTIONAL_CALLS(DUPLEXKV_MEMBER)
#undef DUPLEXKV_MEMBER
};

// Opens `library` and fills the table. NoDevice, with the reason, where there is no such library or
// it is older than CUDA 12.0. The library stays open for the life of the process.
Status load_driver(const char* library, Driver* out) noexcept;

// The system's driver, loaded once. NoDevice as above, or where it starts no GPU.
Status system_driver(const Driver** out) noexcept;

// Ok, Failed for what a call refused on its own account, Lost for everything after which a context
// is beyond repair.
GpuStatus classify(Result result) noexcept;

// "CUDA_ERROR_..."; never null.
const char* name_of(const Driver& driver, Result result) noexcept;

}  // namespace duplexkv::cuda

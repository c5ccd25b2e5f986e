// Compares the types and numbers of cuda_driver.hpp with NVIDIA's header. Compiles to nothing.
#include <cuda.h>
#include <cudaTypedefs.h>

#include <type_traits>

#include "cuda_driver.hpp"

namespace duplexkv::cuda {
namespace {

// Passed in the same way: pointers alike, and numbers of one size.
template <typename Ours, typename Theirs>
constexpr bool kAlike =
    std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> && sizeof(Ours) == sizeof(Theirs);

template <typename Ours, typename Theirs>
constexpr bool kSameCall = false;
template <typename OurResult, typename... Ours, typename TheirResult, typename... Theirs>
  requires(sizeof...(Ours) == sizeof...(Theirs))
constexpr bool kSameCall<OurResult (*)(Ours...), TheirResult (*)(Theirs...)> =
    kAlike<OurResult, TheirResult> && (kAlike<Ours, Theirs> && ...);

#define DUPLEXKV_COMPARE(member, symbol, version, parameters) \
  static_assert(kSameCall<decltype(Driver::member), PFN_##symbol##_v##version>, #symbol);
DUPLEXKV_CUDA_CALLS(DUPLEXKV_COMPARE)
DUPLEXKV_CUDA_OPTIONAL_CALLS(DUPLEXKV_COMPARE)
#undef DUPLEXKV_COMPARE

#define DUPLEXKV_FIELD(ours, our_field, theirs, their_field)                  \
  static_assert(offsetof(ours, our_field) == offsetof(theirs, their_field) && \
                sizeof(ours::our_field) == sizeof(theirs::their_field))
static_assert(sizeof(Location) == sizeof(CUmemLocation));
DUPLEXKV_FIELD(Location, type, CUmemLocation, type);
DUPLEXKV_FIELD(Location, id, CUmemLocation, id);
static_assert(sizeof(CopyAttributes) == sizeof(CUmemcpyAttributes));
DUPLEXKV_FIELD(CopyAttributes, source_order, CUmemcpyAttributes, srcAccessOrder);
DUPLEXKV_FIELD(CopyAttributes, source_hint, CUmemcpyAttributes, srcLocHint);
DUPLEXKV_FIELD(CopyAttributes, target_hint, CUmemcpyAttributes, dstLocHint);
DUPLEXKV_FIELD(CopyAttributes, flags, CUmemcpyAttributes, flags);
static_assert(sizeof(AllocationProp) == sizeof(CUmemAllocationProp));
DUPLEXKV_FIELD(AllocationProp, type, CUmemAllocationProp, type);
DUPLEXKV_FIELD(AllocationProp, handle_types, CUmemAllocationProp, requestedHandleTypes);
DUPLEXKV_FIELD(AllocationProp, location, CUmemAllocationProp, location);
DUPLEXKV_FIELD(AllocationProp, flags, CUmemAllocationProp, allocFlags);
static_assert(sizeof(AccessDesc) == sizeof(CUmemAccessDesc));
DUPLEXKV_FIELD(AccessDesc, location, CUmemAccessDesc, location);
DUPLEXKV_FIELD(AccessDesc, flags, CUmemAccessDesc, flags);
static_assert(sizeof(Uuid) == sizeof(CUuuid));

static_assert(kSuccess == CUDA_SUCCESS && kInvalidValue == CUDA_ERROR_INVALID_VALUE);
static_assert(kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY && kNoDevice == CUDA_ERROR_NO_DEVICE);
static_assert(kNotReady == CUDA_ERROR_NOT_READY && kNotSupported == CUDA_ERROR_NOT_SUPPORTED);
static_assert(kIllegalAddress == CUDA_ERROR_ILLEGAL_ADDRESS);
static_assert(kCaptureUnsupported == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
static_assert(kLocationDevice == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(kLocationHostNuma == CU_MEM_LOCATION_TYPE_HOST_NUMA);
static_assert(kAllocationPinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(kAccessReadWrite == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(kSourceOrderStream == CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
static_assert(kSourceOrderAny == CU_MEMCPY_SRC_ACCESS_ORDER_ANY);
static_assert(kPreferOverlap == CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE);
static_assert(kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(kEventNoTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kEventExternal == CU_EVENT_WAIT_EXTERNAL);
static_assert(kCaptureRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(kHostPortableMapped == (CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP));
static_assert(kHostPortableMapped == (CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));
static_assert(kMemoryTypeAttribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
static_assert(kMemoryTypeHost == CU_MEMORYTYPE_HOST && kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE);
static_assert(kMaxDynamicSharedBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kGranularityRecommended == CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
static_assert(kSmCount == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(kCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kHostPointerUsable == CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM);
static_assert(kSharedBytesOptin == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(kUsesHostPageTables ==
              CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES);
static_assert(kHostNumaId == CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
static_assert(kHostNumaMemory == CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);

}  // namespace
}  // namespace duplexkv::cuda

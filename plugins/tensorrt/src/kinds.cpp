#include "kinds.hpp"

#include <algorithm>
#include <cstring>
#include <exception>

#include "log.hpp"

namespace superinfer_tensorrt {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

namespace {

template <typename Kind>
nvinfer1::IPluginV3* copy_of(const Kind& kind) noexcept {
  try {
    return new Kind(kind);
  } catch (const std::exception& error) {
    log(Severity::kERROR, "%s: %s", Kind::kName, error.what());
    return nullptr;
  }
}

std::uint64_t pool_bytes(const PluginTensorDesc& pool) noexcept {
  std::uint64_t bytes = pool.type == DataType::kHALF || pool.type == DataType::kBF16 ? 2 : 1;
  for (std::int32_t axis = 0; axis < pool.dims.nbDims; ++axis) {
    bytes *= static_cast<std::uint64_t>(std::max<std::int64_t>(pool.dims.d[axis], 0));
  }
  return bytes;
}

}  // namespace

nvinfer1::IPluginV3* Wait::clone() noexcept {
  return copy_of(*this);
}

bool Wait::takes_type(std::int32_t index, DataType type) const noexcept {
  return index == 0 ? plain_type(type) : type == DataType::kINT64;
}

bool Wait::takes_shape(std::int32_t index, std::int32_t rank, std::int64_t last) const noexcept {
  return index == 0 || rank == 0 || (rank == 1 && (last == 1 || last == -1));
}

dkv_status Wait::run(dkv_berth* berth, const PluginTensorDesc*, const void* const* inputs,
                     std::int32_t input_count, cudaStream_t stream) noexcept {
  if (input_count == 1) {
    return dkv_berth_wait(berth, static_cast<std::uint32_t>(fields().group), stream);
  }
  // Memory of the host: TensorRT hands on the address that the network's input was bound to.
  std::int64_t ticket = 0;
  std::memcpy(&ticket, inputs[1], sizeof(ticket));
  return dkv_berth_wait_ticket(berth, ticket, stream);
}

nvinfer1::IPluginV3* Publish::clone() noexcept {
  return copy_of(*this);
}

dkv_status Publish::run(dkv_berth* berth, const PluginTensorDesc*, const void* const*, std::int32_t,
                        cudaStream_t stream) noexcept {
  return dkv_berth_mark(berth, static_cast<std::uint32_t>(fields().layer),
                        static_cast<std::uint32_t>(fields().layers), stream);
}

nvinfer1::IPluginV3* Rotate::clone() noexcept {
  return copy_of(*this);
}

bool Rotate::takes_type(std::int32_t index, DataType type) const noexcept {
  switch (index) {
    case 0:
      return type == DataType::kHALF || type == DataType::kBF16 || type == DataType::kFP8 ||
             type == DataType::kINT8;
    case 1:
      return type == DataType::kINT64;
    default:
      return type == DataType::kINT32;
  }
}

bool Rotate::takes_shape(std::int32_t index, std::int32_t rank, std::int64_t last) const noexcept {
  switch (index) {
    case 0:
      return rank >= 1;
    case 1:
      return rank == 2 && (last == 3 || last == -1);
    default:
      return rank == 1 && (last == 1 || last == -1);
  }
}

dkv_status Rotate::run(dkv_berth* berth, const PluginTensorDesc* descriptions,
                       const void* const* inputs, std::int32_t, cudaStream_t stream) noexcept {
  std::int64_t rows = std::min<std::int64_t>(descriptions[1].dims.d[0], 1 << 24);
  if (fields().segments_max != 0) rows = std::min<std::int64_t>(rows, fields().segments_max);
  const dkv_rotation rotation{
      .struct_size = sizeof(dkv_rotation),
      .direction = static_cast<std::uint32_t>(fields().direction),
      .device_pool = const_cast<void*>(inputs[0]),  // the output is the same memory
      .device_pool_bytes = pool_bytes(descriptions[0]),
      .plan = static_cast<const std::int64_t*>(inputs[1]),
      .count = static_cast<const std::int32_t*>(inputs[2]),
      .segments_max = static_cast<std::uint32_t>(rows),
      .sms_max = static_cast<std::uint32_t>(fields().sms_max),
  };
  return dkv_berth_rotate(berth, &rotation, stream);
}

}  // namespace superinfer_tensorrt

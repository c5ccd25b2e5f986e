#include "plugin.hpp"

#include "log.hpp"

namespace superinfer_tensorrt {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginCapabilityType;

namespace {

constexpr std::int32_t kRefused = -1;  // what TensorRT takes for "no" where it wants 0

}  // namespace

Plugin::Plugin(const char* name, std::span<const Number> numbers, const Fields& fields,
               dkv_berth* berth)
    : name_(name), numbers_(numbers), fields_(fields), berth_(berth) {
  describe();
}

// The description points into the fields, so a copy makes its own.
Plugin::Plugin(const Plugin& other)
    : IPluginV3(other),
      IPluginV3OneCore(other),
      nvinfer1::IPluginV3OneBuildV2(other),
      IPluginV3OneRuntime(other),
      name_(other.name_),
      numbers_(other.numbers_),
      fields_(other.fields_),
      berth_(other.berth_),
      input_count_(other.input_count_) {
  describe();
}

void Plugin::describe() {
  described_ = describe_fields(numbers_, &fields_);
  collection_.nbFields = static_cast<std::int32_t>(described_.size());
  collection_.fields = described_.data();
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

std::int32_t Plugin::getOutputDataTypes(DataType* outputs, std::int32_t output_count,
                                        const DataType* inputs,
                                        std::int32_t input_count) const noexcept {
  if (output_count != 1 || !takes(input_count)) return kRefused;
  outputs[0] = aliased() ? inputs[0] : DataType::kINT32;
  return 0;
}

std::int32_t Plugin::getOutputShapes(const DimsExprs* inputs, std::int32_t input_count,
                                     const DimsExprs*, std::int32_t shape_input_count,
                                     DimsExprs* outputs, std::int32_t output_count,
                                     nvinfer1::IExprBuilder& builder) noexcept {
  if (output_count != 1 || shape_input_count != 0 || !takes(input_count)) {
    log(Severity::kERROR, "%s: %d inputs, %d of them shapes", name_, input_count,
        shape_input_count);
    return kRefused;
  }
  for (std::int32_t index = 0; index < input_count; ++index) {
    const DimsExprs& shape = inputs[index];
    const nvinfer1::IDimensionExpr* last = shape.nbDims > 0 ? shape.d[shape.nbDims - 1] : nullptr;
    const bool known = last != nullptr && last->isConstant();
    if (!takes_shape(index, shape.nbDims, known ? last->getConstantValue() : -1)) {
      log(Severity::kERROR, "%s: the shape of input %d cannot be right", name_, index);
      return kRefused;
    }
  }
  if (aliased()) {
    outputs[0] = inputs[0];
    return 0;
  }
  outputs[0].nbDims = 1;
  outputs[0].d[0] = builder.constant(1);
  return outputs[0].d[0] == nullptr ? kRefused : 0;
}

bool Plugin::supportsFormatCombination(std::int32_t position,
                                       const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       std::int32_t input_count,
                                       std::int32_t output_count) noexcept {
  if (output_count != 1 || !takes(input_count) || position > input_count) return false;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position < input_count) return takes_type(position, tensor.type);
  return tensor.type == (aliased() ? tensors[0].desc.type : DataType::kINT32);
}

std::int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc*,
                                     std::int32_t input_count,
                                     const nvinfer1::DynamicPluginTensorDesc*,
                                     std::int32_t output_count) noexcept {
  if (output_count != 1 || !takes(input_count)) return kRefused;
  input_count_ = input_count;
  return 0;
}

std::int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs,
                                   std::int32_t input_count, const nvinfer1::PluginTensorDesc*,
                                   std::int32_t output_count) noexcept {
  if (output_count != 1 || !takes(input_count)) return kRefused;
  for (std::int32_t index = 0; index < input_count; ++index) {
    const nvinfer1::Dims& shape = inputs[index].dims;
    if (!takes_shape(index, shape.nbDims, shape.nbDims > 0 ? shape.d[shape.nbDims - 1] : -1)) {
      return kRefused;
    }
  }
  input_count_ = input_count;
  return 0;
}

std::int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* input_descriptions,
                             const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                             void* const*, void*, cudaStream_t stream) noexcept {
  // A builder runs plugins on buffers of its own to time them: no engine has to do with those.
  if (berth_ == nullptr) return 0;
  if (input_count_ == 0) {
    log(Severity::kERROR, "%s: enqueued before its shapes were told", name_);
    return DKV_INVALID;
  }
  const dkv_status status = run(berth_, input_descriptions, inputs, input_count_, stream);
  if (status == DKV_OK || (status == DKV_ABSENT && fields_.required == 0)) return 0;
  log(Severity::kERROR, "%s of layer %d: %s: %s", name_, fields_.layer, dkv_status_name(status),
      dkv_last_error());
  return status;
}

bool plain_type(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT:
    case DataType::kHALF:
    case DataType::kBF16:
    case DataType::kFP8:
    case DataType::kINT8:
    case DataType::kINT32:
    case DataType::kINT64:
      return true;
    default:
      return false;
  }
}

}  // namespace superinfer_tensorrt

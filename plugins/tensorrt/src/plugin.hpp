// What the three plugins have in common: an IPluginV3 whose only state is its fields, the phase it
// was made in, and the berth of its engine.
//
// TensorRT clones a plugin for each context; clones share the berth, which lives as long as the
// process. enqueue allocates nothing, waits for nothing and touches no data of the network.
#pragma once

#include <NvInferRuntime.h>

#include <span>
#include <vector>

#include "duplexkv/registry.h"
#include "fields.hpp"

namespace superinfer_tensorrt {

inline constexpr const char* kNamespace = "superinfer";
inline constexpr const char* kVersion = "1";

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuildV2,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  ~Plugin() override = default;
  Plugin& operator=(const Plugin&) = delete;

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept final {
    return clone();
  }

  const char* getPluginName() const noexcept final { return name_; }
  const char* getPluginVersion() const noexcept final { return kVersion; }
  const char* getPluginNamespace() const noexcept final { return kNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept final {
    return &collection_;
  }

  std::int32_t getNbOutputs() const noexcept final { return 1; }
  std::int32_t getAliasedInput(std::int32_t output) noexcept final {
    return output == 0 && aliased() ? 0 : -1;
  }
  std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t output_count,
                                  const nvinfer1::DataType* inputs,
                                  std::int32_t input_count) const noexcept final;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs* shape_inputs,
                               std::int32_t shape_input_count, nvinfer1::DimsExprs* outputs,
                               std::int32_t output_count,
                               nvinfer1::IExprBuilder& builder) noexcept final;
  bool supportsFormatCombination(std::int32_t position,
                                 const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t input_count,
                                 std::int32_t output_count) noexcept final;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                               std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept final;
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs,
                             std::int32_t output_count) noexcept final;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descriptions,
                       const nvinfer1::PluginTensorDesc* output_descriptions,
                       const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept final;

 protected:
  // A berth is looked up where the plugin may meet an engine: never while a network is built.
  Plugin(const char* name, std::span<const Number> numbers, const Fields& fields, dkv_berth* berth);
  Plugin(const Plugin& other);

  [[nodiscard]] const Fields& fields() const noexcept { return fields_; }
  [[nodiscard]] virtual bool aliased() const noexcept { return fields_.alias != 0; }
  // Whether this many inputs can be right.
  [[nodiscard]] virtual bool takes(std::int32_t input_count) const noexcept = 0;
  // Whether input `index` may have this type.
  [[nodiscard]] virtual bool takes_type(std::int32_t index,
                                        nvinfer1::DataType type) const noexcept = 0;
  // Whether input `index` may have `rank` dimensions, the last one of `last` elements (-1: open).
  [[nodiscard]] virtual bool takes_shape(std::int32_t index, std::int32_t rank,
                                         std::int64_t last) const noexcept = 0;
  // What the plugin is for.
  virtual dkv_status run(dkv_berth* berth, const nvinfer1::PluginTensorDesc* descriptions,
                         const void* const* inputs, std::int32_t input_count,
                         cudaStream_t stream) noexcept = 0;

 private:
  void describe();

  const char* name_;
  std::span<const Number> numbers_;
  Fields fields_;
  dkv_berth* berth_;  // null: made to build a network
  std::int32_t input_count_ = 0;
  std::vector<nvinfer1::PluginField> described_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Any type a tensor of a network may have whose bytes nobody here looks at.
[[nodiscard]] bool plain_type(nvinfer1::DataType type) noexcept;

}  // namespace superinfer_tensorrt

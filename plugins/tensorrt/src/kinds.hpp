// The three plugins, and how they are made. README.md says what each takes and gives.
#pragma once

#include <NvInferRuntime.h>

#include <array>

#include "plugin.hpp"

namespace superinfer_tensorrt {

// x [, ticket] -> x' or a token: later work of the stream sees the copies of the step.
class Wait final : public Plugin {
 public:
  static constexpr const char* kName = "SiKvWait";
  static constexpr std::array kNumbers{
      Number{"layer", &Fields::layer, 0, 65535},
      Number{"layers", &Fields::layers, 1, 65536},
      Number{"group", &Fields::group, 0, DKV_STEP_GROUPS_MAX - 1},
      Number{"alias", &Fields::alias, 0, 1},
      Number{"required", &Fields::required, 0, 1},
  };
  Wait(const Fields& fields, dkv_berth* berth) : Plugin(kName, kNumbers, fields, berth) {}
  nvinfer1::IPluginV3* clone() noexcept override;

 private:
  [[nodiscard]] bool takes(std::int32_t input_count) const noexcept override {
    return input_count == 1 || input_count == 2;
  }
  [[nodiscard]] bool takes_type(std::int32_t index,
                                nvinfer1::DataType type) const noexcept override;
  [[nodiscard]] bool takes_shape(std::int32_t index, std::int32_t rank,
                                 std::int64_t last) const noexcept override;
  dkv_status run(dkv_berth* berth, const nvinfer1::PluginTensorDesc* descriptions,
                 const void* const* inputs, std::int32_t input_count,
                 cudaStream_t stream) noexcept override;
};

// x, ... -> x' or a token: what came before has written its layer.
class Publish final : public Plugin {
 public:
  static constexpr const char* kName = "SiKvPublish";
  static constexpr std::int32_t kInputsMax = 8;
  static constexpr std::array kNumbers{
      Number{"layer", &Fields::layer, 0, 65535},
      Number{"layers", &Fields::layers, 1, 65536},
      Number{"alias", &Fields::alias, 0, 1},
      Number{"required", &Fields::required, 0, 1},
  };
  Publish(const Fields& fields, dkv_berth* berth) : Plugin(kName, kNumbers, fields, berth) {}
  nvinfer1::IPluginV3* clone() noexcept override;

 private:
  [[nodiscard]] bool takes(std::int32_t input_count) const noexcept override {
    return input_count >= 1 && input_count <= kInputsMax;
  }
  [[nodiscard]] bool takes_type(std::int32_t, nvinfer1::DataType type) const noexcept override {
    return plain_type(type);
  }
  [[nodiscard]] bool takes_shape(std::int32_t, std::int32_t, std::int64_t) const noexcept override {
    return true;
  }
  dkv_status run(dkv_berth* berth, const nvinfer1::PluginTensorDesc* descriptions,
                 const void* const* inputs, std::int32_t input_count,
                 cudaStream_t stream) noexcept override;
};

// pool, plan [N, 3], count [1] -> pool': copies that the device decides, so a graph can replay it.
class Rotate final : public Plugin {
 public:
  static constexpr const char* kName = "SiKvRotate";
  static constexpr std::array kNumbers{
      Number{"direction", &Fields::direction, DKV_D2H, DKV_H2D},
      Number{"segments_max", &Fields::segments_max, 0, 1 << 24},
      Number{"sms_max", &Fields::sms_max, 0, 1024},
      Number{"required", &Fields::required, 0, 1},
  };
  Rotate(const Fields& fields, dkv_berth* berth) : Plugin(kName, kNumbers, fields, berth) {}
  nvinfer1::IPluginV3* clone() noexcept override;

 private:
  [[nodiscard]] bool aliased() const noexcept override { return true; }
  [[nodiscard]] bool takes(std::int32_t input_count) const noexcept override {
    return input_count == 3;
  }
  [[nodiscard]] bool takes_type(std::int32_t index,
                                nvinfer1::DataType type) const noexcept override;
  [[nodiscard]] bool takes_shape(std::int32_t index, std::int32_t rank,
                                 std::int64_t last) const noexcept override;
  dkv_status run(dkv_berth* berth, const nvinfer1::PluginTensorDesc* descriptions,
                 const void* const* inputs, std::int32_t input_count,
                 cudaStream_t stream) noexcept override;
};

}  // namespace superinfer_tensorrt

// What the library shows: getCreators and setLoggerFinder, which TensorRT looks up by name.
//
// Nothing registers itself when the library is loaded: REGISTER_TENSORRT_PLUGIN would need a symbol
// of TensorRT, and a program that loads the library without it would end at once.
#include <NvInferRuntime.h>

#include <array>
#include <exception>
#include <vector>

#include "kinds.hpp"
#include "log.hpp"

namespace superinfer_tensorrt {
namespace {

// Makes plugins of one kind. Has no state after its construction.
template <typename Kind>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() : described_(describe_fields(Kind::kNumbers, nullptr)) {
    collection_.nbFields = static_cast<std::int32_t>(described_.size());
    collection_.fields = described_.data();
  }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    Fields fields;
    if (given == nullptr || !read_fields(Kind::kName, Kind::kNumbers, *given, &fields)) {
      return nullptr;
    }
    dkv_berth* berth = nullptr;
    if (phase == nvinfer1::TensorRTPhase::kRUNTIME &&
        dkv_engine_lookup(fields.engine_key.data(), &berth) != DKV_OK) {
      log(Severity::kERROR, "%s: %s", Kind::kName, dkv_last_error());
      return nullptr;
    }
    try {
      return new Kind(fields, berth);
    } catch (const std::exception& error) {
      log(Severity::kERROR, "%s: %s", Kind::kName, error.what());
      return nullptr;
    }
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return Kind::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  std::vector<nvinfer1::PluginField> described_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace
}  // namespace superinfer_tensorrt

// TENSORRTAPI is empty outside of TensorRT's own build, and this project hides what it does not
// name: hence the attribute.
extern "C" {

[[gnu::visibility("default")]] void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  superinfer_tensorrt::set_logger_finder(finder);
}

[[gnu::visibility("default")]] nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& count) {
  using superinfer_tensorrt::Creator;
  static Creator<superinfer_tensorrt::Wait> wait;
  static Creator<superinfer_tensorrt::Publish> publish;
  static Creator<superinfer_tensorrt::Rotate> rotate;
  static const std::array<nvinfer1::IPluginCreatorInterface*, 3> creators{&wait, &publish, &rotate};
  count = static_cast<std::int32_t>(creators.size());
  return creators.data();
}

}  // extern "C"

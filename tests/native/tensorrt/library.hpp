// The plugin library as TensorRT meets it: opened at run time, two functions, creators by name.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "../check.hpp"

// Attributes of a node.
class NodeFields {
 public:
  NodeFields& text(const char* name, const std::string& value) {
    const std::string& kept = texts_->emplace_back(value);
    fields_.emplace_back(name, kept.data(), nvinfer1::PluginFieldType::kCHAR,
                         static_cast<std::int32_t>(kept.size()));
    return *this;
  }
  NodeFields& number(const char* name, std::int32_t value) {
    fields_.emplace_back(name, &numbers_->emplace_back(value), nvinfer1::PluginFieldType::kINT32,
                         1);
    return *this;
  }
  NodeFields& raw(const nvinfer1::PluginField& field) {
    fields_.push_back(field);
    return *this;
  }
  [[nodiscard]] nvinfer1::PluginFieldCollection collection() const {
    return {static_cast<std::int32_t>(fields_.size()), fields_.data()};
  }

 private:
  // Copies share what their fields point to.
  std::shared_ptr<std::deque<std::string>> texts_ = std::make_shared<std::deque<std::string>>();
  std::shared_ptr<std::deque<std::int32_t>> numbers_ = std::make_shared<std::deque<std::int32_t>>();
  std::vector<nvinfer1::PluginField> fields_;
};

// Keeps what the plugins say.
class Log final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity, const char* line) noexcept override { last = line; }
  nvinfer1::ILogger* findLogger() override { return this; }
  [[nodiscard]] bool says(const char* part) const { return last.find(part) != std::string::npos; }
  std::string last;
};

// A plugin and its three faces.
struct Made {
  explicit Made(nvinfer1::IPluginV3* made) : plugin(made) {
    using nvinfer1::PluginCapabilityType;
    if (made == nullptr) return;
    core = static_cast<nvinfer1::IPluginV3OneCore*>(
        made->getCapabilityInterface(PluginCapabilityType::kCORE));
    // The second version of the interface derives from what a builder first asks for.
    build = static_cast<nvinfer1::IPluginV3OneBuildV2*>(static_cast<nvinfer1::IPluginV3OneBuild*>(
        made->getCapabilityInterface(PluginCapabilityType::kBUILD)));
    runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        made->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  }
  explicit operator bool() const { return plugin != nullptr; }

  std::unique_ptr<nvinfer1::IPluginV3> plugin;
  nvinfer1::IPluginV3OneCore* core = nullptr;
  nvinfer1::IPluginV3OneBuildV2* build = nullptr;
  nvinfer1::IPluginV3OneRuntime* runtime = nullptr;
};

class Library {
 public:
  explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) std::fprintf(stderr, "%s\n", dlerror());
    CHECK(handle_ != nullptr);
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&);
    using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
    const auto get = reinterpret_cast<GetCreators>(dlsym(handle_, "getCreators"));
    set_logger_finder_ = reinterpret_cast<SetLoggerFinder>(dlsym(handle_, "setLoggerFinder"));
    CHECK(get != nullptr && set_logger_finder_ != nullptr);
    std::int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* creators = get(count);
    for (std::int32_t index = 0; index < count; ++index) {
      CHECK(std::strcmp(creators[index]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
      creators_.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(creators[index]));
    }
    set_logger_finder_(&log);
  }
  ~Library() {
    set_logger_finder_(nullptr);
    dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  [[nodiscard]] const std::vector<nvinfer1::IPluginCreatorV3One*>& creators() const {
    return creators_;
  }
  [[nodiscard]] nvinfer1::IPluginCreatorV3One* creator(const char* name) const {
    for (nvinfer1::IPluginCreatorV3One* creator : creators_) {
      if (std::strcmp(creator->getPluginName(), name) == 0) return creator;
    }
    return nullptr;
  }
  [[nodiscard]] Made make(const char* name, const NodeFields& fields,
                          nvinfer1::TensorRTPhase phase) const {
    const nvinfer1::PluginFieldCollection given = fields.collection();
    return Made(creator(name)->createPlugin("node", &given, phase));
  }

  Log log;

 private:
  void* handle_;
  void (*set_logger_finder_)(nvinfer1::ILoggerFinder*) = nullptr;
  std::vector<nvinfer1::IPluginCreatorV3One*> creators_;
};

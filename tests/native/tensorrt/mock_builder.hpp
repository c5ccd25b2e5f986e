// What a builder hands to a plugin, made by hand: symbolic dimensions that fold constants, and a
// context of resources. Tests only: TensorRT asks programs not to derive from these.
#pragma once

#include <NvInferImpl.h>
#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>
#include <limits>

namespace mock {

// A dimension that is known (>= 0) or not (-1).
class Dimension final : public nvinfer1::IDimensionExpr {
 public:
  explicit Dimension(std::int64_t value) : impl_(value) { mImpl = &impl_; }
  ~Dimension() noexcept override = default;

 private:
  struct Impl final : nvinfer1::apiv::VDimensionExpr {
    explicit Impl(std::int64_t known) : value(known) {}
    bool isConstant() const noexcept override { return value >= 0; }
    std::int64_t getConstantValue() const noexcept override {
      return value >= 0 ? value : std::numeric_limits<std::int64_t>::min();
    }
    bool isSizeTensor() const noexcept override { return false; }
    std::int64_t value;
  };
  Impl impl_;
};

class Builder final : public nvinfer1::IExprBuilder {
 public:
  Builder() { mImpl = &impl_; }
  ~Builder() noexcept override = default;

 private:
  struct Impl final : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* constant(std::int64_t value) noexcept override {
      return &made.emplace_back(value);
    }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation,
                                              const nvinfer1::IDimensionExpr&,
                                              const nvinfer1::IDimensionExpr&) noexcept override {
      return &made.emplace_back(-1);
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(
        std::int32_t, const nvinfer1::IDimensionExpr&,
        const nvinfer1::IDimensionExpr&) noexcept override {
      return &made.emplace_back(-1);
    }
    std::deque<Dimension> made;
  };
  Impl impl_;
};

class Resources final : public nvinfer1::IPluginResourceContext {
 public:
  ~Resources() noexcept override = default;
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

}  // namespace mock

// What a network says to a plugin: the attributes of its node, checked, and back into a plan.
// Knows no engine and no stream. A Fields is a value; any thread may read it.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "duplexkv/registry.h"

namespace superinfer_tensorrt {

// Every field of every plugin; a plugin reads those it names.
struct Fields {
  std::array<char, DKV_KEY_BYTES_MAX + 1> engine_key{};
  std::int32_t layer = 0;
  std::int32_t layers = 1;
  std::int32_t group = 0;
  std::int32_t alias = 0;
  std::int32_t required = 1;
  std::int32_t direction = DKV_H2D;
  std::int32_t segments_max = 0;
  std::int32_t sms_max = 0;
};

// One number among the Fields: its name, its place, its limits (both allowed).
struct Number {
  const char* name;
  std::int32_t Fields::* member;
  std::int32_t min;
  std::int32_t max;
};

// Reads a collection: engine_key (kCHAR) and any of `numbers` (kINT32, one value each). False, with
// a line to the log, on an unknown name, a wrong type, a value outside its limits, or no key.
bool read_fields(const char* plugin, std::span<const Number> numbers,
                 const nvinfer1::PluginFieldCollection& given, Fields* out) noexcept;

// The fields as TensorRT wants to see them. `data` null: names and types only. The result points
// into `values`, which must stay where it is.
std::vector<nvinfer1::PluginField> describe_fields(std::span<const Number> numbers,
                                                   const Fields* values);

}  // namespace superinfer_tensorrt

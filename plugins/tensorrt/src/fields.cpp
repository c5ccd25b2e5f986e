#include "fields.hpp"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "log.hpp"

namespace superinfer_tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr const char* kKey = "engine_key";

bool read_key(const char* plugin, const PluginField& field, Fields* out) noexcept {
  if (field.type != PluginFieldType::kCHAR || field.data == nullptr || field.length < 0) {
    log(Severity::kERROR, "%s: engine_key must be text", plugin);
    return false;
  }
  // A string from a parser may come with its end or without.
  const std::size_t bytes =
      strnlen(static_cast<const char*>(field.data), static_cast<std::size_t>(field.length));
  if (bytes == 0 || bytes > DKV_KEY_BYTES_MAX) {
    log(Severity::kERROR, "%s: engine_key has %zu bytes, not 1..%d", plugin, bytes,
        DKV_KEY_BYTES_MAX);
    return false;
  }
  out->engine_key.fill('\0');
  std::memcpy(out->engine_key.data(), field.data, bytes);
  return true;
}

bool read_number(const char* plugin, const Number& number, const PluginField& field,
                 Fields* out) noexcept {
  if (field.type != PluginFieldType::kINT32 || field.data == nullptr || field.length != 1) {
    log(Severity::kERROR, "%s: %s must be one int32", plugin, number.name);
    return false;
  }
  std::int32_t value = 0;
  std::memcpy(&value, field.data, sizeof(value));
  if (value < number.min || value > number.max) {
    log(Severity::kERROR, "%s: %s is %d, not %d..%d", plugin, number.name, value, number.min,
        number.max);
    return false;
  }
  out->*number.member = value;
  return true;
}

}  // namespace

bool read_fields(const char* plugin, std::span<const Number> numbers,
                 const nvinfer1::PluginFieldCollection& given, Fields* out) noexcept {
  Fields read;
  for (std::int32_t index = 0; index < given.nbFields; ++index) {
    const PluginField& field = given.fields[index];
    const std::string_view name = field.name == nullptr ? "" : field.name;
    if (name == kKey) {
      if (!read_key(plugin, field, &read)) return false;
      continue;
    }
    const auto number = std::find_if(numbers.begin(), numbers.end(),
                                     [&](const Number& known) { return name == known.name; });
    if (number == numbers.end()) {
      log(Severity::kERROR, "%s: no field is named \"%.64s\"", plugin,
          field.name == nullptr ? "" : field.name);
      return false;
    }
    if (!read_number(plugin, *number, field, &read)) return false;
  }
  if (read.engine_key[0] == '\0') {
    log(Severity::kERROR, "%s: engine_key is missing", plugin);
    return false;
  }
  if (read.layer >= read.layers) {
    log(Severity::kERROR, "%s: layer is %d, not below layers, %d", plugin, read.layer, read.layers);
    return false;
  }
  *out = read;
  return true;
}

std::vector<PluginField> describe_fields(std::span<const Number> numbers, const Fields* values) {
  std::vector<PluginField> fields;
  fields.reserve(numbers.size() + 1);
  const auto key_bytes =
      values == nullptr ? 0 : static_cast<std::int32_t>(std::strlen(values->engine_key.data()));
  fields.emplace_back(kKey, values == nullptr ? nullptr : values->engine_key.data(),
                      PluginFieldType::kCHAR, key_bytes);
  for (const Number& number : numbers) {
    fields.emplace_back(number.name, values == nullptr ? nullptr : &(values->*number.member),
                        PluginFieldType::kINT32, 1);
  }
  return fields;
}

}  // namespace superinfer_tensorrt

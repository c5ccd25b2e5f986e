#include "error.hpp"

#include <array>
#include <cstdarg>
#include <cstdio>

namespace duplexkv {
namespace {

thread_local std::array<char, 256> message{};

}  // namespace

Status fail(Status status, const char* format, ...) noexcept {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message.data(), message.size(), format, arguments);
  va_end(arguments);
  return status;
}

const char* last_error() noexcept {
  return message.data();
}

}  // namespace duplexkv

// Status values and the thread's last error message. No allocation, no exception.
#pragma once

#include <cstdint>

#include "duplexkv/duplexkv.h"

namespace duplexkv {

enum class Status : std::int32_t {
  Ok = DKV_OK,
  Busy = DKV_BUSY,
  Invalid = DKV_INVALID,
  OutOfRange = DKV_OUT_OF_RANGE,
  Overlap = DKV_OVERLAP,
  TooLarge = DKV_TOO_LARGE,
  NoMemory = DKV_NO_MEMORY,
  Poisoned = DKV_POISONED,
  Closed = DKV_CLOSED,
  Forked = DKV_FORKED,
  Unsupported = DKV_UNSUPPORTED,
  Internal = DKV_INTERNAL,
  NoDevice = DKV_NO_DEVICE,
  Absent = DKV_ABSENT,
};

// Keeps the message for last_error() of this thread (cut at 255 bytes) and returns `status`.
[[gnu::format(printf, 2, 3)]] Status fail(Status status, const char* format, ...) noexcept;

const char* last_error() noexcept;

}  // namespace duplexkv

#include "calls.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace duplexkv::binding {
namespace {

dkv_status wait_in_pieces(dkv_engine* engine, std::chrono::nanoseconds timeout, int* landed) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::nanoseconds kPiece = std::chrono::milliseconds(20);
  const Clock::time_point deadline = Clock::now() + timeout;
  for (;;) {
    const Clock::time_point begin = Clock::now();
    const bool last = superinfer::binding::ending.load() || begin >= deadline;
    const auto piece = last ? std::chrono::nanoseconds(0) : std::min(kPiece, deadline - begin);
    const dkv_status status = dkv_wait(engine, piece.count(), landed);
    if (status != DKV_OK || *landed != 0 || last) return status;
    // Back before its time with nothing landed: nothing is queued.
    if (Clock::now() < begin + piece) return status;
  }
}

}  // namespace

void require(dkv_status status) {
  if (status == DKV_OK) return;
  switch (status) {
    case DKV_INVALID:
    case DKV_OUT_OF_RANGE:
    case DKV_OVERLAP:
    case DKV_TOO_LARGE:
      throw nb::value_error(dkv_last_error());
    case DKV_NO_MEMORY:
      PyErr_SetString(PyExc_MemoryError, dkv_last_error());
      throw nb::python_error();
    default:
      throw LinkError(dkv_last_error());
  }
}

bool wait_for_landing(dkv_engine* engine, double timeout_s) {
  constexpr double kLongestSeconds = 1e9;  // far less than a clock of int64 nanoseconds holds
  if (!(timeout_s >= 0)) throw nb::value_error("wait: timeout_s must be >= 0");
  const std::chrono::nanoseconds timeout(
      static_cast<std::int64_t>(std::fmin(timeout_s, kLongestSeconds) * 1e9));
  int landed = 0;
  require(without_gil([&] { return wait_in_pieces(engine, timeout, &landed); }));
  return landed != 0;
}

}  // namespace duplexkv::binding

// The C faces' common ground: exceptions become status values, structs of other versions are
// understood.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>

#include "error.hpp"

namespace duplexkv {

template <typename Body>
dkv_status guarded(Body body) noexcept {
  try {
    return static_cast<dkv_status>(body());
  } catch (const std::bad_alloc&) {
    return static_cast<dkv_status>(fail(Status::NoMemory, "out of memory"));
  } catch (const std::exception& error) {
    return static_cast<dkv_status>(fail(Status::Internal, "%s", error.what()));
  }
}

// Takes over a caller's struct of the caller's size. The rest of a shorter one is 0; what a longer
// one adds must be 0, or it would ask for something this library does not know.
template <typename Struct>
Status import_struct(const char* name, const Struct* given, std::size_t size_min, Struct* out) {
  if (given == nullptr) return fail(Status::Invalid, "%s: NULL", name);
  const std::size_t size = given->struct_size;
  if (size < size_min) {
    return fail(Status::Invalid, "%s: struct_size %zu < %zu", name, size, size_min);
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (size > sizeof(Struct) &&
      std::any_of(bytes + sizeof(Struct), bytes + size, [](unsigned char b) { return b != 0; })) {
    return fail(Status::Unsupported, "%s: struct_size %zu with fields that version %d.%d has not",
                name, size, DKV_VERSION_MAJOR, DKV_VERSION_MINOR);
  }
  std::memset(out, 0, sizeof(Struct));
  std::memcpy(out, given, std::min(size, sizeof(Struct)));
  return Status::Ok;
}

// Fills a caller's struct, which may be shorter or longer than ours: what both know, 0 the rest.
template <typename Struct>
Status export_struct(const char* name, Struct filled, Struct* out) {
  if (out == nullptr || out->struct_size < sizeof(std::uint32_t)) {
    return fail(Status::Invalid, "%s: NULL or struct_size not set", name);
  }
  const std::uint32_t size = out->struct_size;
  filled.struct_size = size;
  std::memset(out, 0, size);
  std::memcpy(out, &filled, std::min<std::size_t>(size, sizeof(filled)));
  return Status::Ok;
}

}  // namespace duplexkv

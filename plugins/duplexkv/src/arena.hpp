// One tier's memory: blocks x block_bytes, block-first, contiguous. Owns; knows no slot's meaning.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "error.hpp"

namespace duplexkv {

// A view of a tier: block i is the block_bytes at base + i * block_bytes. Owns nothing.
struct Pool {
  std::byte* base = nullptr;
  std::uint64_t blocks = 0;
};

// Zeroed anonymous memory, aligned to 2 MiB, huge pages asked for. Given back when destroyed.
class Arena {
 public:
  static Status create(std::uint64_t blocks, std::uint64_t block_bytes,
                       std::unique_ptr<Arena>* out);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  Arena(std::byte* base, std::uint64_t bytes, std::uint64_t mapped_bytes) noexcept
      : base_(base), bytes_(bytes), mapped_bytes_(mapped_bytes) {}

  std::byte* base_;
  std::uint64_t bytes_;
  std::uint64_t mapped_bytes_;
};

}  // namespace duplexkv

// Zeroed memory on huge pages where the kernel grants them.
//
// Knows nothing of what is stored. A buffer is owned by one thread at a time.
#pragma once

#include <cstddef>
#include <utility>

namespace superinfer::cpu {

class Buffer {
 public:
  Buffer() = default;
  // Zeroed, 64-byte aligned (2 MiB aligned when large). Throws std::bad_alloc.
  explicit Buffer(std::size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Makes room for at least `bytes`; the content is zero afterwards if it had to grow.
  void reserve(std::size_t bytes) {
    if (bytes > bytes_) *this = Buffer(bytes);
  }

  template <class T>
  T* as() {
    return static_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace superinfer::cpu

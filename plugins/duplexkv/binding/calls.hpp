// What every part of the binding uses: arrays as they come, refusals as exceptions, and a wait that
// ends with the interpreter.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "../../binding/without_gil.hpp"
#include "duplexkv/duplexkv.h"

namespace duplexkv::binding {

namespace nb = nanobind;
using superinfer::binding::without_gil;

// A lane or an engine that can copy no more; becomes the Python exception LinkError.
struct LinkError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws for anything but DKV_OK what the thread's last refusal says.
void require(dkv_status status);

// dkv_wait in short pieces, so that it ends with the interpreter. Throws ValueError for no time.
bool wait_for_landing(dkv_engine* engine, double timeout_s);

// A contiguous array of one dimension, read (or, if T is not const, written) in place: array.array,
// numpy, anything with a buffer. Much cheaper to take than an ndarray, which matters where an
// argument is four bytes long. The object stays as it is while this lives.
template <typename T>
class Array {
 public:
  Array() = default;
  ~Array() { close(); }
  Array(Array&& other) noexcept : view_(std::exchange(other.view_, {})) {}
  Array& operator=(Array&& other) noexcept {
    std::swap(view_, other.view_);
    return *this;
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  // False, with no exception set, for an object of another kind.
  bool open(PyObject* object) noexcept {
    close();
    constexpr int kFlags = PyBUF_FORMAT | PyBUF_ND | (std::is_const_v<T> ? 0 : PyBUF_WRITABLE);
    if (PyObject_GetBuffer(object, &view_, kFlags) != 0) {
      PyErr_Clear();
      view_ = {};
      return false;
    }
    return view_.ndim == 1 && view_.itemsize == sizeof(T) && of_our_kind();
  }

  [[nodiscard]] T* data() const noexcept { return static_cast<T*>(view_.buf); }
  [[nodiscard]] std::uint64_t size() const noexcept {
    return static_cast<std::uint64_t>(view_.len) / sizeof(T);
  }

 private:
  using Value = std::remove_const_t<T>;

  // One code of the struct module, in the byte order of the machine. Its size is known to be right.
  [[nodiscard]] bool of_our_kind() const noexcept {
    const char* code = view_.format;
    if (code == nullptr) return false;
    if (*code == '@' || *code == '=') ++code;
    if (*code == '\0' || code[1] != '\0') return false;
    if constexpr (std::is_signed_v<Value>) return *code == 'i' || *code == 'l' || *code == 'q';
    return *code == 'B';
  }
  void close() noexcept {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
    view_ = {};
  }

  Py_buffer view_{};
};

}  // namespace duplexkv::binding

namespace nanobind::detail {

template <typename T>
struct type_caster<duplexkv::binding::Array<T>> {
  NB_TYPE_CASTER(duplexkv::binding::Array<T>, const_name("collections.abc.Buffer"))

  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    return value.open(source.ptr());
  }
};

}  // namespace nanobind::detail

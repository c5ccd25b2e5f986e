// Calls of native code that let other threads of the interpreter run; for every binding.
//
// A thread that is without the GIL when the interpreter ends dies at its next attempt to take it
// back, in the middle of C++: in Python 3.11 that ends the process. So such calls are counted, and
// at exit, while threads may still take the GIL, a hook waits until none is left; what is called
// later keeps the GIL. The counts are a module's own.
#pragma once

#include <nanobind/nanobind.h>
#include <pthread.h>

#include <atomic>

namespace superinfer::binding {

namespace nb = nanobind;

// A call counts itself in and then looks whether the end has begun; the hook says so and then looks
// for calls: one of them sees the other.
inline std::atomic<int> calls_outside{0};
inline std::atomic<bool> ending{false};

inline void leave_outside() noexcept {
  if (calls_outside.fetch_sub(1) == 1 && ending.load()) calls_outside.notify_all();
}

// Registers the hook; once, when the module is made.
inline void end_calls_at_exit() {
  const auto end_calls = [] {
    ending.store(true);
    PyThreadState* const thread = PyEval_SaveThread();
    for (int left = calls_outside.load(); left != 0; left = calls_outside.load())
      calls_outside.wait(left);
    PyEval_RestoreThread(thread);
  };
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(end_calls));
  // A child has none of the threads that were outside.
  pthread_atfork(nullptr, nullptr, [] { calls_outside.store(0); });
}

// Without the GIL while it lives, unless the interpreter is about to end.
class WithoutGil {
 public:
  WithoutGil() noexcept {
    calls_outside.fetch_add(1);
    if (ending.load()) {
      leave_outside();
    } else {
      thread_ = PyEval_SaveThread();
    }
  }
  ~WithoutGil() {
    if (thread_ == nullptr) return;
    PyEval_RestoreThread(thread_);
    leave_outside();
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* thread_ = nullptr;
};

template <typename Call>
auto without_gil(Call call) {
  const WithoutGil unlocked;
  return call();
}

}  // namespace superinfer::binding

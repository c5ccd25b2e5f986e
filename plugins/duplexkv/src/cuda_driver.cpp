#include "cuda_driver.hpp"

#include <dlfcn.h>

#include <array>
#include <mutex>

namespace duplexkv::cuda {
namespace {

// cuGetProcAddress as of CUDA 12.0, which also tells why a symbol is not there.
using GetProcAddress = Result (*)(const char* symbol, void** function, int version,
                                  std::uint64_t flags, int* found);
constexpr int kFound = 0;

class Finder {
 public:
  explicit Finder(GetProcAddress get) noexcept : get_(get) {}

  template <typename Function>
  bool find(const char* symbol, int version, Function* out) const noexcept {
    void* address = nullptr;
    int found = -1;
    if (get_(symbol, &address, version, 0, &found) != kSuccess) return false;
    if (found != kFound || address == nullptr) return false;
    *out = reinterpret_cast<Function>(address);
    return true;
  }

 private:
  GetProcAddress get_;
};

}  // namespace

Status load_driver(const char* library, Driver* out) noexcept {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return fail(Status::NoDevice, "cuda: no driver here: %s", reason == nullptr ? library : reason);
  }
  auto get = reinterpret_cast<GetProcAddress>(dlsym(handle, "cuGetProcAddress_v2"));
  if (get == nullptr) {
    return fail(Status::NoDevice, "cuda: the driver %s is older than CUDA 12.0", library);
  }
  const Finder finder(get);
  Driver driver;
#define DUPLEXKV_FIND(member, symbol, version, parameters)                                         \
  if (!finder.find(#symbol, version, &driver.member)) {                                            \
    return fail(Status::NoDevice, "cuda: the driver %s has no " #symbol " of version %d", library, \
                version);                                                                          \
  }
  DUPLEXKV_CUDA_CALLS(DUPLEXKV_FIND)
#undef DUPLEXKV_FIND
#define DUPLEXKV_TRY(member, symbol, version, parameters) \
  if (!finder.find(#symbol, version, &driver.member)) driver.member = nullptr;
  DUPLEXKV_CUDA_OPTIONAL_CALLS(DUPLEXKV_TRY)
#undef DUPLEXKV_TRY
  *out = driver;
  return Status::Ok;
}

Status system_driver(const Driver** out) noexcept {
  static std::mutex loading;
  static Driver driver;
  static bool loaded = false;
  const std::lock_guard lock(loading);
  if (!loaded) {
    Driver found;
    const Status status = load_driver("libcuda.so.1", &found);
    if (status != Status::Ok) return status;
    const Result result = found.init(0);
    if (result != kSuccess) {
      return fail(Status::NoDevice, "cuda: the driver does not start: %s", name_of(found, result));
    }
    driver = found;
    loaded = true;
  }
  *out = &driver;
  return Status::Ok;
}

GpuStatus classify(Result result) noexcept {
  if (result == kSuccess) return GpuStatus::Ok;
  // What a call may refuse and leave the context whole: arguments, memory, handles, images,
  // registrations, captures. Anything else, also what a later driver invents, ends the context.
  struct Range {
    Result first;
    Result last;
  };
  constexpr std::array<Range, 15> kRefusals{{{1, 2},
                                             {34, 36},
                                             {100, 102},
                                             {200, 213},
                                             {215, 219},
                                             {221, 225},
                                             {300, 304},
                                             {400, 402},
                                             {500, 600},
                                             {701, 701},
                                             {703, 708},
                                             {711, 713},
                                             {800, 801},
                                             {900, 910},
                                             {912, 916}}};
  for (const Range range : kRefusals) {
    if (range.first <= result && result <= range.last) return GpuStatus::Failed;
  }
  return GpuStatus::Lost;
}

const char* name_of(const Driver& driver, Result result) noexcept {
  const char* name = nullptr;
  if (driver.get_error_name == nullptr || driver.get_error_name(result, &name) != kSuccess ||
      name == nullptr) {
    return "an unknown error";
  }
  return name;
}

}  // namespace duplexkv::cuda

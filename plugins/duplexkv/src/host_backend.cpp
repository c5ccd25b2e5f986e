#include "backend.hpp"
#include "copy.hpp"

namespace duplexkv {
namespace {

class HostBackend final : public Backend {
 public:
  [[nodiscard]] std::size_t depth() const noexcept override { return 1; }

  Progress submit(const Slice& slice, std::uint64_t /*sequence*/) noexcept override {
    for (std::size_t i = 0; i < slice.bytes.size(); ++i) {
      // NOLINTBEGIN(performance-no-int-to-ptr): a plan carries addresses, as a device copy call
      // does
      copy_bytes(reinterpret_cast<std::byte*>(slice.target[i]),
                 reinterpret_cast<const std::byte*>(slice.source[i]), slice.bytes[i]);
      // NOLINTEND(performance-no-int-to-ptr)
    }
    return Progress::Done;
  }

  Progress query(std::uint64_t /*sequence*/) noexcept override { return Progress::Done; }

  void drain() noexcept override {}
};

}  // namespace

std::unique_ptr<Backend> make_host_backend() {
  return std::make_unique<HostBackend>();
}

}  // namespace duplexkv

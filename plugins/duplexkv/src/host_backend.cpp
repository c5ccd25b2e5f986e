// Copies on the lane's thread and on helpers of its own, a slice at a time.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "backend.hpp"
#include "copy.hpp"
#include "numa.hpp"
#include "quiet.hpp"

namespace duplexkv {
namespace {

constexpr std::uint64_t kLineBytes = 64;

// A slice as one string of bytes, and which part of it each thread copies.
struct Work {
  const Slice* slice = nullptr;
  std::uint64_t share_bytes = 0;
  unsigned shares = 0;

  void copy(unsigned share) const noexcept {
    const std::uint64_t begin = share * share_bytes;
    const std::uint64_t end = begin + share_bytes;
    std::uint64_t at = 0;
    for (std::size_t i = 0; i < slice->bytes.size() && at < end; ++i) {
      const std::uint64_t first = std::max(begin, at);
      const std::uint64_t last = std::min(end, at + slice->bytes[i]);
      if (first < last) {
        // NOLINTBEGIN(performance-no-int-to-ptr): a plan carries addresses, as a device copy call
        // does
        copy_bytes(reinterpret_cast<std::byte*>(slice->target[i] + (first - at)),
                   reinterpret_cast<const std::byte*>(slice->source[i] + (first - at)),
                   last - first);
        // NOLINTEND(performance-no-int-to-ptr)
      }
      at += slice->bytes[i];
    }
  }
};

class HostBackend final : public Backend {
 public:
  explicit HostBackend(HostBackendConfig config) : HostBackend(config, Empty{}) {
    const SignalsBlocked guard;
    for (unsigned share = 1; share < config_.threads; ++share) {
      helpers_.emplace_back([this, share] { help(share); });
      pthread_setname_np(helpers_.back().native_handle(), "dkv-copy");
    }
  }
  ~HostBackend() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    started_.notify_all();
    for (std::thread& helper : helpers_)
      helper.join();
  }

  [[nodiscard]] std::size_t depth() const noexcept override { return 1; }

  Progress submit(const Slice& slice, std::uint64_t /*sequence*/) noexcept override {
    if (!placed_) place();
    const Work work = divide(slice);
    if (work.shares > 1) {
      {
        const std::lock_guard lock(mutex_);
        work_ = work;
        working_ = work.shares - 1;
        ++round_;
      }
      started_.notify_all();
    }
    work.copy(0);
    if (work.shares > 1) {
      std::unique_lock lock(mutex_);
      ended_.wait(lock, [this] { return working_ == 0; });
    }
    return Progress::Done;
  }

  Progress query(std::uint64_t /*sequence*/) noexcept override { return Progress::Done; }

  void drain() noexcept override {}

 private:
  struct Empty {};
  // Complete before the first helper starts, so that one that cannot start undoes the others.
  HostBackend(HostBackendConfig config, Empty) : config_(config) {}

  [[nodiscard]] Work divide(const Slice& slice) const noexcept {
    std::uint64_t bytes = 0;
    for (const std::size_t piece : slice.bytes)
      bytes += piece;
    const auto shares = static_cast<unsigned>(
        std::clamp<std::uint64_t>(bytes / config_.share_bytes_min, 1, config_.threads));
    const std::uint64_t even = (bytes + shares - 1) / shares;
    return {.slice = &slice,
            .share_bytes = (even + kLineBytes - 1) / kLineBytes * kLineBytes,
            .shares = shares};
  }

  // Where the pool is is known when it has been touched: at the first copy. The lane's thread goes
  // there too.
  void place() noexcept {
    placed_ = true;
    const auto first = reinterpret_cast<std::uintptr_t>(config_.near.data());
    const std::uint64_t bytes = config_.near.size();
    if (bytes == 0) return;
    const int node =
        common_node(std::array<std::uintptr_t, 3>{first, first + bytes / 2, first + bytes - 1});
    if (node < 0) return;
    stay(node);
    const std::lock_guard lock(mutex_);
    node_ = node;
  }

  static bool stay(int node) noexcept {
    try {
      return stay_on_node(node);
    } catch (const std::exception&) {
      return false;  // no memory for a file name: it stays where it is
    }
  }

  void help(unsigned share) noexcept {
    std::uint64_t seen = 0;
    int on_node = -1;
    std::unique_lock lock(mutex_);
    while (true) {
      started_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      if (share >= work_.shares) continue;
      const Work work = work_;
      const int node = node_;
      lock.unlock();
      if (node != on_node) stay(on_node = node);
      work.copy(share);
      lock.lock();
      if (--working_ == 0) ended_.notify_one();
    }
  }

  HostBackendConfig config_;
  bool placed_ = false;  // the lane's
  std::mutex mutex_;     // guards all below but the threads
  std::condition_variable started_;
  std::condition_variable ended_;
  Work work_;
  unsigned working_ = 0;  // helpers that have not ended their share
  std::uint64_t round_ = 0;
  int node_ = -1;
  bool stopping_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace

std::unique_ptr<Backend> make_host_backend(HostBackendConfig config) {
  return std::make_unique<HostBackend>(config);
}

}  // namespace duplexkv

// The table of berths: engines of this process by name. See duplexkv/registry.h.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "duplexkv/registry.h"
#include "error.hpp"

namespace duplexkv {
class Engine;
}

// Opaque to C. A port is written while the berth is closed and nobody is inside, and read inside.
struct dkv_berth {
 public:
  // Inside from here on, if something lies in the berth; leaves in the destructor.
  class Visit {
   public:
    explicit Visit(dkv_berth* berth) noexcept;
    ~Visit();
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    [[nodiscard]] const dkv_port* port() const noexcept { return open_ ? &berth_->port_ : nullptr; }

   private:
    void leave() noexcept;

    dkv_berth* berth_;
    bool open_ = false;
  };

  explicit dkv_berth(std::string_view key) : key_(key) {}
  dkv_berth(const dkv_berth&) = delete;
  dkv_berth& operator=(const dkv_berth&) = delete;

  // Under the table's lock.
  duplexkv::Status open(const dkv_port& port, const duplexkv::Engine* engine) noexcept;
  void close() noexcept;
  [[nodiscard]] const duplexkv::Engine* engine() const noexcept { return engine_; }

  duplexkv::Status step(std::int64_t turn, std::span<const std::int64_t> tickets) noexcept;
  duplexkv::Status ticket(std::uint32_t group, std::int64_t* out) const noexcept;
  [[nodiscard]] std::int64_t turn() const noexcept { return turn_.load(std::memory_order_relaxed); }
  [[nodiscard]] const char* key() const noexcept { return key_.c_str(); }

 private:
  const std::string key_;
  std::atomic<std::uint32_t> inside_{0};
  std::atomic<bool> open_{false};
  dkv_port port_{};
  const duplexkv::Engine* engine_ = nullptr;  // the port's, if it is one of ours
  std::atomic<std::int64_t> turn_{-1};
  std::atomic<std::uint32_t> groups_{0};
  std::array<std::atomic<std::int64_t>, DKV_STEP_GROUPS_MAX> tickets_{};
};

namespace duplexkv {

class Registry {
 public:
  // The process's; never destroyed, since plugins may outlive static objects.
  static Registry& instance();

  Status lookup(const char* key, dkv_berth** out);
  Status publish(const char* key, const dkv_port& port, const Engine* engine);
  Status withdraw(const char* key);
  // Empties every berth where the engine lies.
  void forget(const Engine* engine) noexcept;

 private:
  Registry() = default;
  Status find(const char* key, dkv_berth** out);  // under the lock

  std::mutex lock_;
  std::map<std::string, std::unique_ptr<dkv_berth>, std::less<>> berths_;
};

}  // namespace duplexkv

// Which way a slice goes: the copy engines, or one of two copy kernels. A table over direction,
// mean size of a segment and number of segments; pure, but for the file it can be kept in.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "duplexkv/duplexkv.h"

namespace duplexkv {

enum class Route : std::uint8_t {
  Auto = DKV_ROUTE_AUTO,
  CopyEngine = DKV_ROUTE_COPY_ENGINE,
  Register = DKV_ROUTE_REGISTER,
  Tma = DKV_ROUTE_TMA,
};

// What this GPU and this build can do beside the copy engines, which are always there.
struct Routes {
  bool register_kernel = false;
  bool tma_kernel = false;
  [[nodiscard]] bool has(Route route) const noexcept {
    return route == Route::CopyEngine || (route == Route::Register && register_kernel) ||
           (route == Route::Tma && tma_kernel);
  }
};

// Measures one way of copying. Not pure; the table's only window on the world.
class RouteTimer {
 public:
  RouteTimer() = default;
  virtual ~RouteTimer() = default;
  RouteTimer(const RouteTimer&) = delete;
  RouteTimer& operator=(const RouteTimer&) = delete;

  // Seconds that `count` segments of `bytes` take; <= 0 when it could not be measured.
  virtual double seconds(Route route, unsigned direction, std::size_t bytes,
                         std::size_t count) noexcept = 0;
  // Since the timer was made.
  virtual double elapsed_s() noexcept = 0;
};

class RouteTable {
 public:
  // A segment of at least the last size always takes the copy engines: they are as fast, and leave
  // the multiprocessors alone. So do slices of fewer segments than the first count.
  static constexpr std::array<std::size_t, 6> kBytes{4 << 10,  8 << 10,  16 << 10,
                                                     28 << 10, 64 << 10, 256 << 10};
  static constexpr std::array<std::size_t, 3> kCounts{16, 128, 1024};
  // What one measurement may copy.
  static constexpr std::size_t kTrialBytesMax = std::size_t{8} << 20;

  // What is published about such machines, until measured: kernels for many small segments.
  explicit RouteTable(Routes routes) noexcept;

  [[nodiscard]] Route choose(unsigned direction, std::uint64_t bytes,
                             std::size_t count) const noexcept;

  // Measures what `budget_s` seconds allow, smallest segments first; a cell that was not reached
  // keeps what it had. A kernel must win by a tenth.
  void calibrate(RouteTimer* timer, double budget_s) noexcept;

  // One line for the machine, one a direction. `key` names GPU, driver and build.
  [[nodiscard]] std::string to_text(std::string_view key) const;
  // Nothing for another key, another version of the text, or a route that `routes` has not.
  static std::optional<RouteTable> from_text(std::string_view text, std::string_view key,
                                             Routes routes);

  friend bool operator==(const RouteTable& a, const RouteTable& b) { return a.cells_ == b.cells_; }

 private:
  static constexpr std::size_t kSizes = kBytes.size() - 1;
  static constexpr std::size_t kCells = kSizes * kCounts.size();

  [[nodiscard]] Route measured(RouteTimer* timer, unsigned direction, std::size_t bytes,
                               std::size_t count, Route before) const noexcept;

  Routes routes_;
  // [direction][size * kCounts.size() + count]: from kBytes[size] (or below, for the first) to
  // below kBytes[size + 1], from kCounts[count] on.
  std::array<std::array<Route, kCells>, 2> cells_;
};

// The table of `path` if it is there and fits. A file that cannot be read is no table.
std::optional<RouteTable> load_routes(const char* path, std::string_view key, Routes routes);
// Replaces the file in one move; whether it is there now.
bool save_routes(const char* path, std::string_view key, const RouteTable& table);

}  // namespace duplexkv

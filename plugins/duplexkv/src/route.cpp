#include "route.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>

namespace duplexkv {
namespace {

constexpr std::string_view kHeader = "duplexkv-routes 1";
constexpr double kKernelGainMin = 1.1;
// Below this a batch of copies to the device falls off a cliff on PCIe; as published.
constexpr std::size_t kCliffBytes = 28 << 10;
constexpr std::size_t kFileBytesMax = 4096;
constexpr std::string_view kLetters = "?crt";  // by Route

std::size_t size_cell(std::uint64_t mean_bytes) noexcept {
  const auto* above =
      std::upper_bound(RouteTable::kBytes.begin(), RouteTable::kBytes.end(), mean_bytes);
  const auto cell = above - RouteTable::kBytes.begin();
  return cell == 0 ? 0 : static_cast<std::size_t>(cell - 1);
}

std::size_t count_cell(std::size_t count) noexcept {
  const auto* above =
      std::upper_bound(RouteTable::kCounts.begin(), RouteTable::kCounts.end(), count);
  return static_cast<std::size_t>(above - RouteTable::kCounts.begin()) - 1;
}

}  // namespace

RouteTable::RouteTable(Routes routes) noexcept : routes_(routes) {
  for (auto& cells : cells_)
    cells.fill(Route::CopyEngine);
  const Route kernel = routes.tma_kernel        ? Route::Tma
                       : routes.register_kernel ? Route::Register
                                                : Route::CopyEngine;
  for (std::size_t size = 0; size < kSizes && kBytes[size] < kCliffBytes; ++size) {
    for (std::size_t count = 0; count < kCounts.size(); ++count) {
      cells_[DKV_H2D][size * kCounts.size() + count] = kernel;
    }
  }
}

Route RouteTable::choose(unsigned direction, std::uint64_t bytes,
                         std::size_t count) const noexcept {
  if (count < kCounts.front()) return Route::CopyEngine;
  const std::uint64_t mean_bytes = bytes / count;
  if (mean_bytes >= kBytes.back()) return Route::CopyEngine;
  return cells_[direction][size_cell(mean_bytes) * kCounts.size() + count_cell(count)];
}

Route RouteTable::measured(RouteTimer* timer, unsigned direction, std::size_t bytes,
                           std::size_t count, Route before) const noexcept {
  const double engine_s = timer->seconds(Route::CopyEngine, direction, bytes, count);
  if (!(engine_s > 0)) return before;
  Route best = Route::CopyEngine;
  double best_s = engine_s / kKernelGainMin;
  for (const Route route : {Route::Register, Route::Tma}) {
    if (!routes_.has(route)) continue;
    const double kernel_s = timer->seconds(route, direction, bytes, count);
    if (kernel_s > 0 && kernel_s < best_s) {
      best = route;
      best_s = kernel_s;
    }
  }
  return best;
}

void RouteTable::calibrate(RouteTimer* timer, double budget_s) noexcept {
  if (!routes_.register_kernel && !routes_.tma_kernel) return;  // nothing to choose from
  for (std::size_t size = 0; size < kSizes; ++size) {
    for (std::size_t count = 0; count < kCounts.size(); ++count) {
      const std::size_t segments = std::min(kCounts[count], kTrialBytesMax / kBytes[size]);
      for (const unsigned direction : {DKV_D2H, DKV_H2D}) {
        if (timer->elapsed_s() >= budget_s) return;
        Route& cell = cells_[direction][size * kCounts.size() + count];
        cell = measured(timer, direction, kBytes[size], segments, cell);
      }
    }
  }
}

std::string RouteTable::to_text(std::string_view key) const {
  std::string text{kHeader};
  text.append(" ").append(key).append("\n");
  for (const unsigned direction : {DKV_D2H, DKV_H2D}) {
    for (const Route route : cells_[direction])
      text += kLetters[static_cast<std::size_t>(route)];
    text += '\n';
  }
  return text;
}

std::optional<RouteTable> RouteTable::from_text(std::string_view text, std::string_view key,
                                                Routes routes) {
  RouteTable table(routes);
  // The frame is compared with what this version would write; only the letters are read.
  const std::string frame = table.to_text(key);
  if (text.size() != frame.size()) return std::nullopt;
  const std::size_t head = frame.find('\n') + 1;
  if (text.substr(0, head) != std::string_view(frame).substr(0, head)) return std::nullopt;
  for (const unsigned direction : {DKV_D2H, DKV_H2D}) {
    const std::size_t line = head + direction * (kCells + 1);
    if (text[line + kCells] != '\n') return std::nullopt;
    for (std::size_t cell = 0; cell < kCells; ++cell) {
      const std::size_t letter = kLetters.find(text[line + cell]);
      if (letter == std::string_view::npos) return std::nullopt;
      const auto route = static_cast<Route>(letter);
      if (!routes.has(route)) return std::nullopt;
      table.cells_[direction][cell] = route;
    }
  }
  return table;
}

std::optional<RouteTable> load_routes(const char* path, std::string_view key, Routes routes) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::string text(kFileBytesMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  return RouteTable::from_text(text, key, routes);
}

bool save_routes(const char* path, std::string_view key, const RouteTable& table) {
  const std::string part = std::string(path) + "." + std::to_string(getpid());
  {
    std::ofstream file(part, std::ios::binary | std::ios::trunc);
    file << table.to_text(key);
    file.close();
    if (!file) {
      std::remove(part.c_str());
      return false;
    }
  }
  if (std::rename(part.c_str(), path) == 0) return true;
  std::remove(part.c_str());
  return false;
}

}  // namespace duplexkv

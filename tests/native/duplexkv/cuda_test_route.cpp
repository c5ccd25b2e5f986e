// The routing table, measured by a clock that is a formula.
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>

#include "../check.hpp"
#include "route.hpp"

namespace {

using duplexkv::load_routes;
using duplexkv::Route;
using duplexkv::Routes;
using duplexkv::RouteTable;
using duplexkv::RouteTimer;
using duplexkv::save_routes;

constexpr Routes kAll{.register_kernel = true, .tma_kernel = true};
constexpr std::size_t kKiB = 1024;

// Copy engines pay per segment, kernels a start; each has a bandwidth. Each question takes 0.1 ms.
class FormulaTimer final : public RouteTimer {
 public:
  double seconds(Route route, unsigned direction, std::size_t bytes,
                 std::size_t count) noexcept override {
    ++asked;
    bytes_max = std::max(bytes_max, bytes * count);
    if (route == broken) return 0;
    const double all = static_cast<double>(bytes * count);
    switch (route) {
      case Route::CopyEngine:
        return engine_segment_s * static_cast<double>(count) + all / 55e9;
      case Route::Register:
        return 10e-6 + all / (direction == DKV_D2H ? 52e9 : 20e9);
      default:
        return 10e-6 + all / (direction == DKV_D2H ? 30e9 : 45e9);
    }
  }
  double elapsed_s() noexcept override { return 1e-4 * asked; }

  int asked = 0;
  std::size_t bytes_max = 0;
  Route broken = Route::Auto;
  double engine_segment_s = 1.5e-6;
};

void unmeasured_only_small_segments_to_the_device_take_a_kernel() {
  const RouteTable table(kAll);
  CHECK(table.choose(DKV_H2D, 1000 * 8 * kKiB, 1000) == Route::Tma);
  CHECK(table.choose(DKV_H2D, 1000 * 27 * kKiB, 1000) == Route::Tma);
  CHECK(table.choose(DKV_H2D, 1000 * 28 * kKiB, 1000) == Route::CopyEngine);
  CHECK(table.choose(DKV_H2D, 15 * 8 * kKiB, 15) == Route::CopyEngine);  // few
  CHECK(table.choose(DKV_D2H, 1000 * 8 * kKiB, 1000) == Route::CopyEngine);
  CHECK(table.choose(DKV_H2D, 1, 1) == Route::CopyEngine);
  const RouteTable older({.register_kernel = true, .tma_kernel = false});
  CHECK(older.choose(DKV_H2D, 1000 * 8 * kKiB, 1000) == Route::Register);
  const RouteTable bare({});
  CHECK(bare.choose(DKV_H2D, 1000 * 8 * kKiB, 1000) == Route::CopyEngine);
}

void measured_each_cell_has_its_fastest() {
  RouteTable table(kAll);
  FormulaTimer timer;
  table.calibrate(&timer, 1.0);
  CHECK(timer.bytes_max <= RouteTable::kTrialBytesMax);
  CHECK(table.choose(DKV_H2D, 1000 * 8 * kKiB, 1000) == Route::Tma);
  CHECK(table.choose(DKV_D2H, 1000 * 8 * kKiB, 1000) == Route::Register);
  CHECK(table.choose(DKV_D2H, 500 * kKiB, 1000) == Route::Register);  // below the first size
  // 64 KiB: 1.5 us of calls in 1.2 us of link; the kernel of D2H gains, that of H2D too.
  CHECK(table.choose(DKV_D2H, 1000 * 100 * kKiB, 1000) == Route::Register);
  // From the last size on the engines have it, whatever was measured below.
  CHECK(table.choose(DKV_D2H, 1000 * 256 * kKiB, 1000) == Route::CopyEngine);
  CHECK(table.choose(DKV_D2H, 1000 * 4096 * kKiB, 1000) == Route::CopyEngine);
}

void a_kernel_must_win_by_a_tenth() {
  RouteTable table(kAll);
  FormulaTimer timer;
  timer.engine_segment_s = 0;  // 55 GB/s against 52: nothing to gain
  table.calibrate(&timer, 1.0);
  for (const std::size_t bytes : {4 * kKiB, 16 * kKiB, 100 * kKiB}) {
    CHECK(table.choose(DKV_D2H, 1000 * bytes, 1000) == Route::CopyEngine);
    CHECK(table.choose(DKV_H2D, 1000 * bytes, 1000) == Route::CopyEngine);
  }
}

void a_measurement_that_fails_changes_nothing() {
  FormulaTimer timer;
  timer.broken = Route::CopyEngine;
  RouteTable table(kAll);
  table.calibrate(&timer, 1.0);
  CHECK(table == RouteTable(kAll));
  FormulaTimer other;
  other.broken = Route::Tma;
  table.calibrate(&other, 1.0);
  CHECK(table.choose(DKV_H2D, 1000 * 8 * kKiB, 1000) == Route::Register);
}

void the_budget_is_kept_and_small_segments_go_first() {
  RouteTable table(kAll);
  FormulaTimer timer;
  table.calibrate(&timer, 1e-3);  // ten questions
  CHECK(timer.asked >= 10 && timer.asked < 10 + 3);
  CHECK(table.choose(DKV_D2H, 64 * 4 * kKiB, 64) != Route::CopyEngine);       // reached
  CHECK(table.choose(DKV_D2H, 5000 * 16 * kKiB, 5000) == Route::CopyEngine);  // not reached
  FormulaTimer idle;
  RouteTable bare({});
  bare.calibrate(&idle, 1.0);
  CHECK(idle.asked == 0);
}

void a_file_gives_the_same_table_for_the_same_machine_only() {
  RouteTable table(kAll);
  FormulaTimer timer;
  table.calibrate(&timer, 1.0);
  CHECK(!(table == RouteTable(kAll)));
  const std::string path = "/tmp/duplexkv-routes-" + std::to_string(getpid());
  CHECK(save_routes(path.c_str(), "gpu-a 13000", table));
  CHECK(load_routes(path.c_str(), "gpu-a 13000", kAll) == table);
  CHECK(!load_routes(path.c_str(), "gpu-a 13010", kAll));
  CHECK(!load_routes(path.c_str(), "gpu-b 13000", kAll));
  CHECK(!load_routes(path.c_str(), "gpu-a 13000", {.register_kernel = true, .tma_kernel = false}));
  CHECK(!load_routes("/nowhere/at/all", "gpu-a 13000", kAll));
  CHECK(!save_routes("/nowhere/at/all", "gpu-a 13000", table));
  std::remove(path.c_str());
}

void damaged_text_is_no_table() {
  const RouteTable table(kAll);
  const std::string good = table.to_text("k");
  CHECK(RouteTable::from_text(good, "k", kAll) == table);
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = '!';
    CHECK(!RouteTable::from_text(bad, "k", kAll));
    CHECK(!RouteTable::from_text(good.substr(0, i), "k", kAll));
  }
  CHECK(!RouteTable::from_text(good + "c", "k", kAll));
  std::string automatic = good;
  automatic[good.size() - 2] = '?';
  CHECK(!RouteTable::from_text(automatic, "k", kAll));
}

}  // namespace

int main() {
  RUN(unmeasured_only_small_segments_to_the_device_take_a_kernel);
  RUN(measured_each_cell_has_its_fastest);
  RUN(a_kernel_must_win_by_a_tenth);
  RUN(a_measurement_that_fails_changes_nothing);
  RUN(the_budget_is_kept_and_small_segments_go_first);
  RUN(a_file_gives_the_same_table_for_the_same_machine_only);
  RUN(damaged_text_is_no_table);
  return 0;
}

// Copies that the device decides: the arithmetic of the kernel against memcpy, and its launch from
// an engine's berth over the driver of the tests.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../check.hpp"
#include "cuda_fake.hpp"
#include "cuda_parts.hpp"
#include "engine.hpp"
#include "engine_port.hpp"

namespace {

using duplexkv::Direction;
using duplexkv::Engine;
using duplexkv::EngineConfig;
using duplexkv::EngineParts;
using duplexkv::Status;
using duplexkv::cuda::kPieceBytes;
using duplexkv::cuda::kWarpLanes;
using duplexkv::cuda::rotate_share;
using duplexkv::cuda::RotationTask;
using duplexkv_test::fake;
using duplexkv_test::fake_driver;
using duplexkv_test::fake_image;
using duplexkv_test::reset_fake;

using Bytes = std::vector<unsigned char>;

std::uint64_t number(const void* pointer) {
  return reinterpret_cast<std::uint64_t>(pointer);
}

bool said(const char* part) {
  return std::strstr(duplexkv::last_error(), part) != nullptr;
}

// ---- the arithmetic ----

// Two pools inside larger memories, so that a byte outside of them would be seen.
struct Worlds {
  explicit Worlds(std::mt19937_64* random) : random_(*random) {
    constexpr std::array<std::uint64_t, 9> kSizes{
        1, 5, 16, 48, 1000, 4096, kPieceBytes, kPieceBytes + 1, 2 * kPieceBytes + 100};
    block_bytes = kSizes[random_() % kSizes.size()];
    device_blocks = 1 + random_() % 12;
    host_blocks = 1 + random_() % 12;
    device_at = random_() % 40;
    host_at = random_() % 40;
    device.resize(device_at + device_blocks * block_bytes + 64);
    host.resize(host_at + host_blocks * block_bytes + 64);
    for (Bytes* memory : {&device, &host}) {
      for (unsigned char& byte : *memory)
        byte = static_cast<unsigned char>(random_());
    }
  }

  // Rows that are right, with targets of their own each; between them some that are not.
  void write_plan(bool out) {
    const std::uint64_t targets = out ? host_blocks : device_blocks;
    std::vector<std::int64_t> order(targets);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const std::int64_t target : order) {
      if (random_() % 3 == 0) write_bad_row();
      const auto source =
          static_cast<std::int64_t>(random_() % (out ? device_blocks : host_blocks));
      const auto bytes = static_cast<std::int64_t>(random_() % (block_bytes + 1));
      write_row(out ? source : target, out ? target : source, random_() % 2 == 0 ? 0 : bytes);
    }
  }
  void write_bad_row() {
    constexpr std::int64_t kFar = INT64_MAX;
    const auto blocks = static_cast<std::int64_t>(device_blocks);
    const auto slots = static_cast<std::int64_t>(host_blocks);
    const auto bytes = static_cast<std::int64_t>(block_bytes);
    const std::array<std::array<std::int64_t, 3>, 9> bad{{{blocks, 0, 0},
                                                          {0, slots, 0},
                                                          {-1, 0, 0},
                                                          {0, -1, 0},
                                                          {0, 0, bytes + 1},
                                                          {0, 0, -1},
                                                          {kFar, kFar, kFar},
                                                          {INT64_MIN, 0, 0},
                                                          {std::int64_t{1} << 32, 0, 0}}};
    const auto& row = bad[random_() % bad.size()];
    write_row(row[0], row[1], row[2]);
  }
  void write_row(std::int64_t block, std::int64_t slot, std::int64_t bytes) {
    plan.insert(plan.end(), {block, slot, bytes});
  }

  // What a loop over the plan does; counts the rows that it leaves out.
  std::uint64_t copy_plainly(std::int64_t rows, bool out) {
    std::uint64_t refused = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t* row = plan.data() + 3 * i;
      const bool fits = row[0] >= 0 && row[0] < static_cast<std::int64_t>(device_blocks) &&
                        row[1] >= 0 && row[1] < static_cast<std::int64_t>(host_blocks) &&
                        row[2] >= 0 && row[2] <= static_cast<std::int64_t>(block_bytes);
      if (!fits) {
        ++refused;
        continue;
      }
      unsigned char* block =
          device.data() + device_at + static_cast<std::uint64_t>(row[0]) * block_bytes;
      unsigned char* slot =
          host.data() + host_at + static_cast<std::uint64_t>(row[1]) * block_bytes;
      const std::size_t bytes = row[2] == 0 ? block_bytes : static_cast<std::size_t>(row[2]);
      std::memcpy(out ? slot : block, out ? block : slot, bytes);
    }
    return refused;
  }

  [[nodiscard]] RotationTask task(const std::int32_t* count, std::uint32_t rows_max,
                                  bool out) const {
    return {.pools = {.device_base = number(device.data() + device_at),
                      .device_blocks = device_blocks,
                      .host_base = number(host.data() + host_at),
                      .host_blocks = host_blocks,
                      .block_bytes = block_bytes},
            .plan = number(plan.data()),
            .count = number(count),
            .refused = 0,
            .rows_max = rows_max,
            .out = out ? 1U : 0U};
  }

  std::uint64_t block_bytes;
  std::uint64_t device_blocks;
  std::uint64_t host_blocks;
  std::uint64_t device_at;
  std::uint64_t host_at;
  Bytes device;
  Bytes host;
  std::vector<std::int64_t> plan;

 private:
  std::mt19937_64& random_;
};

// Warps and lanes in any order: none relies on another.
void warps_copy_what_a_loop_over_the_plan_would() {
  std::mt19937_64 random(31);
  std::uint64_t refused_in_all = 0;
  for (int round = 0; round < 600; ++round) {
    Worlds moved(&random);
    const bool out = random() % 2 == 0;
    moved.write_plan(out);
    const auto rows = static_cast<std::int32_t>(moved.plan.size() / 3);
    const std::int32_t count = static_cast<std::int32_t>(random() % 24) - 3;
    const auto rows_max = static_cast<std::uint32_t>(random() % (static_cast<unsigned>(rows) + 1));
    Worlds wanted = moved;
    const std::int32_t read = std::clamp(count, 0, static_cast<std::int32_t>(rows_max));
    const std::uint64_t refused = wanted.copy_plainly(read, out);
    const RotationTask task = moved.task(&count, rows_max, out);
    const std::uint64_t warps = 1 + random() % 70;
    std::uint64_t counted = 0;
    for (std::uint64_t turn = 0; turn < warps; ++turn) {
      const std::uint64_t warp = warps - 1 - turn;
      const unsigned first = static_cast<unsigned>(random() % kWarpLanes);
      std::uint64_t share = 0;
      for (unsigned lane = 0; lane < kWarpLanes; ++lane)
        share = rotate_share(task, warp, warps, (first + 5 * lane) % kWarpLanes, kWarpLanes);
      counted += share;
    }
    CHECK(moved.device == wanted.device && moved.host == wanted.host);
    CHECK(counted == refused);
    refused_in_all += refused;
  }
  CHECK(refused_in_all > 100);
}

// ---- the launch ----

constexpr std::uint64_t kBlockBytes = 40000;  // three pieces, the last one short
constexpr std::uint64_t kDeviceBlocks = 8;
constexpr std::uint64_t kHostBlocks = 16;

struct Machine {
  explicit Machine(const char* key) : memory((kDeviceBlocks + kHostBlocks) * kBlockBytes) {
    for (std::size_t i = 0; i < memory.size(); ++i)
      memory[i] = static_cast<unsigned char>(i / kBlockBytes * 31 + i % 251);
    reset_fake().device_base = number(memory.data());
    fake().device_bytes = kDeviceBlocks * kBlockBytes;
    config.struct_size = sizeof(config);
    config.backend = DKV_BACKEND_CUDA;
    config.device_base = memory.data();
    config.device_blocks = kDeviceBlocks;
    config.host_base = memory.data() + kDeviceBlocks * kBlockBytes;
    config.host_blocks = kHostBlocks;
    config.block_bytes = kBlockBytes;
    name = key;
  }
  void start(const void* kernels = fake_image()) {
    EngineParts parts;
    CHECK(duplexkv::cuda::make_gpu(fake_driver(), kernels, config, &parts.gpu) == Status::Ok);
    EngineConfig wanted;
    wanted.device = {.base = static_cast<std::byte*>(config.device_base), .blocks = kDeviceBlocks};
    wanted.host = {.base = static_cast<std::byte*>(config.host_base), .blocks = kHostBlocks};
    wanted.block_bytes = kBlockBytes;
    CHECK(Engine::create(wanted, std::move(parts), &engine) == Status::Ok);
    CHECK(duplexkv::publish_engine(name, engine.get()) == Status::Ok);
    CHECK(dkv_engine_lookup(name, &berth) == DKV_OK);
    rotation = {.struct_size = sizeof(rotation),
                .direction = DKV_H2D,
                .device_pool = config.device_base,
                .device_pool_bytes = kDeviceBlocks * kBlockBytes,
                .plan = plan.data(),
                .count = &count,
                .segments_max = 4,
                .sms_max = 0};
    const std::lock_guard lock(fake().mutex);
    fake().count.clear();
    fake().grids.clear();
  }
  ~Machine() {
    if (engine == nullptr) return;
    duplexkv::Registry::instance().forget(engine.get());
    engine.reset();
    CHECK(fake().alive_in_all() == 0);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  dkv_status rotate(std::uintptr_t on = 0x50) const {
    return dkv_berth_rotate(berth, &rotation, reinterpret_cast<void*>(on));
  }
  std::uint64_t refused(std::uint32_t direction) const {
    std::uint64_t rows = 99;
    CHECK(dkv_berth_refused(berth, direction, &rows) == DKV_OK);
    return rows;
  }
  unsigned char* block(std::size_t id) { return memory.data() + id * kBlockBytes; }
  unsigned char* slot(std::size_t id) { return block(kDeviceBlocks + id); }
  bool equal(std::size_t id, std::size_t of, std::size_t bytes = kBlockBytes) {
    return std::memcmp(block(id), slot(of), bytes) == 0;
  }

  const char* name = nullptr;
  Bytes memory;
  dkv_config config{};
  std::unique_ptr<Engine> engine;
  dkv_berth* berth = nullptr;
  std::array<std::int64_t, 12> plan{2, 9, 0, 5, 1, 777, 0, 0, 0, 7, 15, 0};
  std::int32_t count = 2;
  dkv_rotation rotation{};
};

void a_rotation_is_one_launch_and_nothing_that_waits() {
  Machine machine("launch");
  machine.start();
  CHECK(machine.rotate() == DKV_OK);
  CHECK(machine.equal(2, 9) && machine.equal(5, 1, 777) && !machine.equal(5, 1));
  CHECK(!machine.equal(0, 0) && !machine.equal(7, 15));
  for (const auto& [call, number] : fake().count) {
    const bool of_the_thread = call == "context_get_current" || call == "context_push" ||
                               call == "context_pop" || call == "exchange_capture_mode";
    CHECK(of_the_thread || (call == "launch" && number == 1));
  }
  const RotationTask& task = fake().rotations.at(0);
  CHECK(task.pools.device_base == number(machine.block(0)) && task.pools.device_blocks == 8);
  CHECK(task.pools.host_base == number(machine.slot(0)) && task.pools.host_blocks == 16);
  CHECK(task.plan == number(machine.plan.data()) && task.count == number(&machine.count));
  CHECK(task.rows_max == 4 && task.out == 0);
}

void the_grid_is_the_budget_or_what_the_plan_may_need() {
  Machine machine("grid");
  std::vector<std::int64_t> large(3000, -1);
  machine.config.cuda_sms_max = 6;
  machine.start();
  machine.count = 0;
  CHECK(machine.rotate() == DKV_OK);  // 4 rows of 3 pieces: fewer than the warps of one block
  machine.rotation.plan = large.data();
  machine.rotation.segments_max = 1000;
  CHECK(machine.rotate() == DKV_OK);  // the engine's limit
  machine.rotation.sms_max = 2;
  CHECK(machine.rotate() == DKV_OK);
  machine.rotation.sms_max = 100000;
  CHECK(machine.rotate() == DKV_OK);  // all the GPU has
  CHECK((fake().grids == std::vector<unsigned>{1, 6, 2, 132}));
  machine.rotation.segments_max = 0;
  CHECK(machine.rotate() == DKV_OK);
  CHECK(fake().grids.size() == 4);
}

void rows_outside_the_pools_are_counted_and_skipped() {
  Machine machine("counted");
  machine.start();
  machine.plan = {8, 0, 0, 1, 16, 0, -1, 3, 0, 3, 3, 0};
  machine.count = 1000;  // not believed beyond segments_max
  const Bytes before = machine.memory;
  CHECK(machine.rotate() == DKV_OK);
  CHECK(machine.refused(DKV_H2D) == 3 && machine.refused(DKV_D2H) == 0);
  CHECK(machine.equal(3, 3));
  std::memcpy(machine.block(3), before.data() + 3 * kBlockBytes, kBlockBytes);
  CHECK(machine.memory == before);
  machine.rotation.direction = DKV_D2H;
  machine.count = 2;
  CHECK(machine.rotate() == DKV_OK);
  CHECK(machine.refused(DKV_H2D) == 3 && machine.refused(DKV_D2H) == 2);
  CHECK(machine.memory == before);
  CHECK(fake().count["stream_synchronize"] == 0);
}

void a_graph_reads_the_plan_of_each_replay() {
  Machine machine("graph");
  machine.start();
  {
    const std::lock_guard lock(fake().mutex);
    fake().capturing.insert(reinterpret_cast<void*>(0x50));
  }
  const Bytes before = machine.memory;
  CHECK(machine.rotate() == DKV_OK);
  CHECK(machine.memory == before && fake().graph.size() == 1);
  machine.rotation = {};  // what the capture was told has been taken over
  fake().graph[0]();
  CHECK(machine.equal(2, 9) && !machine.equal(7, 15));
  machine.plan = {7, 15, 0, 6, 15, 0, 1, 1, 0, 99, 1, 0};
  machine.count = 4;
  fake().graph[0]();
  CHECK(machine.equal(7, 15) && machine.equal(6, 15) && machine.equal(1, 1));
  CHECK(machine.refused(DKV_H2D) == 1);
}

void what_cannot_be_right_is_refused_before_the_launch() {
  Machine machine("refused");
  machine.start();
  const dkv_rotation right = machine.rotation;
  const auto refused = [&](const char* why) {
    const bool told = machine.rotate() == DKV_INVALID && said(why);
    machine.rotation = right;
    return told;
  };
  machine.rotation.device_pool = machine.slot(0);
  CHECK(refused("device_pool"));
  machine.rotation.device_pool_bytes -= kBlockBytes;
  CHECK(refused("device_pool"));
  machine.rotation.direction = 2;
  CHECK(refused("direction 2 > 1"));
  machine.rotation.plan = nullptr;
  CHECK(refused("plan"));
  machine.rotation.plan = reinterpret_cast<const std::int64_t*>(number(right.plan) + 4);
  CHECK(refused("plan: NULL or not aligned to 8"));
  machine.rotation.count = nullptr;
  CHECK(refused("count"));
  machine.rotation.count = reinterpret_cast<const std::int32_t*>(number(right.count) + 2);
  CHECK(refused("count: NULL or not aligned to 4"));
  CHECK(machine.rotate(0) == DKV_INVALID && said("legacy stream"));
  CHECK(fake().count["launch"] == 0);
}

void without_a_kernel_or_its_counters_rotations_are_unsupported() {
  {
    Machine machine("no kernel");
    machine.start(nullptr);
    CHECK(machine.rotate() == DKV_UNSUPPORTED && said("compute capability 9.0"));
    CHECK(machine.refused(DKV_H2D) == 0);
  }
  {
    Machine machine("too old");
    fake().attributes[duplexkv::cuda::kCapabilityMajor] = 7;
    machine.start();
    CHECK(machine.rotate() == DKV_UNSUPPORTED && said("compute capability 7.0"));
  }
  Machine machine("no counters");
  fake().fail_name = "host_alloc";
  fake().fail_at = 0;
  machine.start();
  CHECK(machine.rotate() == DKV_UNSUPPORTED && said("counters"));
}

void a_refused_launch_is_told_and_a_lost_gpu_poisons() {
  Machine machine("lost");
  machine.start();
  {
    const std::lock_guard lock(fake().mutex);
    fake().fail_name = "launch";
    fake().fail_at = fake().calls = 0;
    fake().fail_with = 701;
  }
  CHECK(machine.rotate() == DKV_INTERNAL && said("not launched"));
  CHECK(machine.rotate() == DKV_OK);
  {
    const std::lock_guard lock(fake().mutex);
    fake().lost = true;
  }
  CHECK(machine.rotate() == DKV_POISONED);
  dkv_stats stats{};
  for (const Direction direction : {Direction::D2H, Direction::H2D})
    CHECK(machine.engine->stats(direction, &stats) == Status::Ok && stats.poisoned == 1);
  const std::lock_guard lock(fake().mutex);
  fake().lost = false;
}

void a_poisoned_engine_launches_nothing() {
  Machine machine("poisoned");
  machine.start();
  machine.plan[0] = -1;
  CHECK(machine.rotate() == DKV_OK);
  CHECK(machine.engine->poison(Direction::H2D) == Status::Ok);
  CHECK(machine.rotate() == DKV_POISONED);
  CHECK(fake().count["launch"] == 1);
  CHECK(machine.refused(DKV_H2D) == 1);  // what was counted can still be read
}

}  // namespace

int main() {
  RUN(warps_copy_what_a_loop_over_the_plan_would);
  RUN(a_rotation_is_one_launch_and_nothing_that_waits);
  RUN(the_grid_is_the_budget_or_what_the_plan_may_need);
  RUN(rows_outside_the_pools_are_counted_and_skipped);
  RUN(a_graph_reads_the_plan_of_each_replay);
  RUN(what_cannot_be_right_is_refused_before_the_launch);
  RUN(without_a_kernel_or_its_counters_rotations_are_unsupported);
  RUN(a_refused_launch_is_told_and_a_lost_gpu_poisons);
  RUN(a_poisoned_engine_launches_nothing);
  return 0;
}

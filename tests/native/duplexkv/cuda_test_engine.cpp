// The whole of it: an engine whose lanes copy through CudaGpu, over the driver of the tests.
#include <array>
#include <cstring>
#include <vector>

#include "../check.hpp"
#include "cuda_fake.hpp"
#include "cuda_parts.hpp"
#include "duplexkv/cuda.h"
#include "engine.hpp"

namespace {

using duplexkv::Direction;
using duplexkv::Engine;
using duplexkv::EngineConfig;
using duplexkv::EngineParts;
using duplexkv::Gpu;
using duplexkv::Status;
using duplexkv_test::fake;
using duplexkv_test::fake_driver;
using duplexkv_test::fake_image;
using duplexkv_test::reset_fake;

constexpr std::uint64_t kBlockBytes = 8192;

bool said(const char* part) {
  return std::strstr(duplexkv::last_error(), part) != nullptr;
}

// One range, the first third the "GPU's".
struct Machine {
  Machine() : memory(192 * kBlockBytes) {
    for (std::size_t i = 0; i < memory.size(); ++i)
      memory[i] = static_cast<std::byte>(i / kBlockBytes + i % 251);
    reset_fake().device_base = reinterpret_cast<std::uintptr_t>(memory.data());
    fake().device_bytes = 64 * kBlockBytes;
    config.struct_size = sizeof(config);
    config.backend = DKV_BACKEND_CUDA;
    config.device_base = memory.data();
    config.device_blocks = 64;
    config.host_base = memory.data() + 64 * kBlockBytes;
    config.host_blocks = 128;
    config.block_bytes = kBlockBytes;
  }
  Status make(std::shared_ptr<Gpu>* gpu) {
    return duplexkv::cuda::make_gpu(fake_driver(), fake_image(), config, gpu);
  }
  // The device tier as four layers, one behind the other; the host tier as its parts are given.
  void layer_first() {
    constexpr std::uint64_t kPart = kBlockBytes / 4;
    for (std::uint64_t layer = 0; layer < 4; ++layer)
      layers.push_back(
          {.base = memory.data() + layer * 64 * kPart, .stride = kPart, .bytes = kPart});
    config.device_segments = layers.data();
    config.device_segment_count = layers.size();
    config.device_base = nullptr;
  }
  // Of blocks twice as far apart as they are long, so that all are apart in memory.
  void rows_in_the_host() {
    rows = {{.base = memory.data() + 64 * kBlockBytes,
             .stride = 2 * kBlockBytes,
             .bytes = kBlockBytes}};
    config.host_segments = rows.data();
    config.host_segment_count = rows.size();
    config.host_blocks = 64;
  }
  void start() {
    EngineParts parts;
    CHECK(make(&parts.gpu) == Status::Ok);
    EngineConfig wanted;
    wanted.host_chunk_bytes = config.cuda_host_chunk_bytes;
    for (const dkv_segment& one : layers)
      wanted.device_segments.push_back({static_cast<std::byte*>(one.base), one.stride, one.bytes});
    for (const dkv_segment& one : rows)
      wanted.host_segments.push_back({static_cast<std::byte*>(one.base), one.stride, one.bytes});
    wanted.device = {.base = memory.data(), .blocks = 64};
    wanted.host = {.base = memory.data() + 64 * kBlockBytes, .blocks = config.host_blocks};
    wanted.block_bytes = kBlockBytes;
    CHECK(Engine::create(wanted, std::move(parts), &engine) == Status::Ok);
  }
  Status submit(Direction direction, const std::vector<std::int32_t>& source,
                const std::vector<std::int32_t>& target, std::int64_t after = -1) {
    const std::array<std::int64_t, 2> offsets{0, static_cast<std::int64_t>(source.size())};
    const std::array<std::int64_t, 1> turns{after};
    return engine->submit(direction,
                          {.source = source, .target = target, .offsets = offsets, .after = turns},
                          &ticket);
  }
  // The outcome of the next group to end.
  int collect() {
    std::array<std::int64_t, 1> tickets{};
    std::array<std::uint8_t, 1> outcomes{};
    for (std::size_t count = 0;;) {
      CHECK(engine->poll(tickets, outcomes, &count) == Status::Ok);
      if (count == 1) return outcomes[0];
      bool any = false;
      CHECK(engine->wait(std::chrono::seconds(60), &any) == Status::Ok && any);
    }
  }
  std::byte* block(bool host, std::int32_t id) {
    return memory.data() + (static_cast<std::size_t>(id) + (host ? 64 : 0)) * kBlockBytes;
  }

  std::vector<std::byte> memory;
  std::vector<dkv_segment> layers;
  std::vector<dkv_segment> rows;
  dkv_config config{};
  std::unique_ptr<Engine> engine;
  std::int64_t ticket = 0;
};

void blocks_cross_both_ways_by_every_route() {
  for (const unsigned route :
       {DKV_ROUTE_AUTO, DKV_ROUTE_COPY_ENGINE, DKV_ROUTE_REGISTER, DKV_ROUTE_TMA}) {
    Machine machine;
    machine.config.cuda_route = route;
    machine.start();
    std::vector<std::int32_t> even;
    std::vector<std::int32_t> slots;
    for (std::int32_t i = 0; i < 32; ++i) {
      even.push_back(2 * i);
      slots.push_back(127 - i);
    }
    const std::vector<std::byte> before = machine.memory;
    CHECK(machine.submit(Direction::D2H, even, slots) == Status::Ok);
    CHECK(machine.collect() == DKV_DONE);
    std::vector<std::int32_t> odd;
    for (std::int32_t i = 0; i < 32; ++i)
      odd.push_back(2 * i + 1);
    CHECK(machine.submit(Direction::H2D, slots, odd) == Status::Ok);
    CHECK(machine.collect() == DKV_DONE);
    for (std::int32_t i = 0; i < 32; ++i) {
      CHECK(std::memcmp(machine.block(true, 127 - i),
                        &before[2 * static_cast<std::size_t>(i) * kBlockBytes], kBlockBytes) == 0);
      CHECK(std::memcmp(machine.block(false, 2 * i + 1), machine.block(false, 2 * i),
                        kBlockBytes) == 0);
    }
    machine.engine.reset();
    CHECK(fake().alive_in_all() == 0);
  }
}

// Device block `id` of a machine whose device tier is layer-first.
std::vector<std::byte> gathered(const Machine& machine, std::int32_t id) {
  std::vector<std::byte> block;
  for (const dkv_segment& layer : machine.layers) {
    const auto* part =
        static_cast<std::byte*>(layer.base) + static_cast<std::size_t>(id) * layer.stride;
    block.insert(block.end(), part, part + layer.bytes);
  }
  return block;
}

void layouts_change_on_the_way_by_every_route() {
  for (const unsigned route :
       {DKV_ROUTE_AUTO, DKV_ROUTE_COPY_ENGINE, DKV_ROUTE_REGISTER, DKV_ROUTE_TMA}) {
    for (const bool apart : {false, true}) {
      Machine machine;
      machine.config.cuda_route = route;
      machine.layer_first();
      if (apart) machine.rows_in_the_host();
      if (apart) machine.config.cuda_host_chunk_bytes = 3 * kBlockBytes / 2;
      machine.start();
      const auto in_host = [&](std::int32_t slot) {
        return machine.block(true, apart ? 2 * slot : slot);
      };
      std::vector<std::int32_t> even;
      std::vector<std::int32_t> odd;
      std::vector<std::int32_t> slots;
      for (std::int32_t i = 0; i < 32; ++i) {
        even.push_back(2 * i);
        odd.push_back(2 * i + 1);
        slots.push_back(63 - i);
      }
      std::vector<std::vector<std::byte>> before;
      for (std::int32_t i = 0; i < 64; ++i)
        before.push_back(gathered(machine, i));
      CHECK(machine.submit(Direction::D2H, even, slots) == Status::Ok);
      CHECK(machine.collect() == DKV_DONE);
      CHECK(machine.submit(Direction::H2D, slots, odd) == Status::Ok);
      CHECK(machine.collect() == DKV_DONE);
      for (std::int32_t i = 0; i < 32; ++i) {
        const auto& block = before[2 * static_cast<std::size_t>(i)];
        CHECK(std::memcmp(in_host(63 - i), block.data(), kBlockBytes) == 0);
        CHECK(gathered(machine, 2 * i) == block && gathered(machine, 2 * i + 1) == block);
      }
      machine.engine.reset();
      CHECK(fake().alive_in_all() == 0);
    }
  }
}

void every_part_of_a_pool_is_looked_at() {
  Machine machine;
  machine.layer_first();
  machine.rows_in_the_host();
  std::shared_ptr<Gpu> gpu;
  fake().device_bytes = 64 * kBlockBytes - 1;  // the last layer's last byte
  CHECK(machine.make(&gpu) == Status::Invalid && said("not memory of a GPU"));
  fake().device_bytes = 64 * kBlockBytes;
  fake().pageable_from = reinterpret_cast<std::uintptr_t>(&machine.memory.back()) - kBlockBytes;
  CHECK(machine.make(&gpu) == Status::Invalid && said("not page-locked"));
  fake().pageable_from = UINTPTR_MAX;
  machine.config.cuda_host_chunk_bytes = 4096;
  machine.config.host_base = machine.memory.data() + 65 * kBlockBytes;  // behind the first row
  CHECK(machine.make(&gpu) == Status::Invalid && said("host_base"));
  machine.config.host_base = nullptr;
  CHECK(machine.make(&gpu) == Status::Invalid && said("host_base"));
  machine.config.cuda_host_chunk_bytes = 0;
  CHECK(machine.make(&gpu) == Status::Ok);
  const dkv_rotation rotation{};
  int stream = 0;
  CHECK(gpu->rotate(reinterpret_cast<duplexkv::Stream>(&stream), rotation) == Status::Unsupported);
  CHECK(said("not block-first"));
}

void a_copy_waits_for_the_turn_recorded_in_a_stream() {
  Machine machine;
  machine.start();
  int compute = 0;
  const auto stream = reinterpret_cast<duplexkv::Stream>(&compute);
  fake().count.clear();
  CHECK(machine.submit(Direction::D2H, {1}, {1}, 5) == Status::Ok);
  CHECK(machine.engine->mark_stream(5, stream) == Status::Ok);
  CHECK(machine.collect() == DKV_DONE);
  CHECK(fake().count["stream_wait_event"] <= 1);  // none once the event is seen to have passed
  CHECK(machine.engine->mark_stream(6, 0) == Status::Invalid);
  {
    const std::lock_guard lock(fake().mutex);
    fake().capturing.insert(&compute);
  }
  CHECK(machine.engine->mark_stream(6, stream) == Status::Invalid);
  CHECK(machine.engine->graph_wait(stream) == Status::Ok);
  CHECK(fake().wait_flags == duplexkv::cuda::kEventExternal);
}

void a_lost_gpu_poisons_its_lanes_and_hangs_nobody() {
  Machine machine;
  machine.start();
  {
    const std::lock_guard lock(fake().mutex);
    fake().lost = true;
  }
  CHECK(machine.submit(Direction::D2H, {1, 3}, {1, 4}) == Status::Ok);
  CHECK(machine.collect() == DKV_FAILED);
  CHECK(machine.submit(Direction::D2H, {1}, {1}) == Status::Poisoned);
  machine.engine.reset();
  {
    const std::lock_guard lock(fake().mutex);
    fake().lost = false;
  }
}

void pools_must_be_where_they_belong() {
  Machine machine;
  std::shared_ptr<Gpu> gpu;
  fake().device_bytes = 0;
  CHECK(machine.make(&gpu) == Status::Invalid && said("not memory of a GPU"));
  fake().device_bytes = 64 * kBlockBytes;
  fake().pageable_from = reinterpret_cast<std::uintptr_t>(machine.config.host_base) + 1;
  CHECK(machine.make(&gpu) == Status::Invalid && said("not page-locked"));
  fake().attributes[duplexkv::cuda::kUsesHostPageTables] = 1;
  CHECK(machine.make(&gpu) == Status::Ok);
  machine.config.host_blocks = UINT64_MAX;
  CHECK(machine.make(&gpu) == Status::Invalid);
}

void numbers_out_of_range_are_refused() {
  Machine machine;
  std::shared_ptr<Gpu> gpu;
  machine.config.cuda_route = DKV_ROUTE_TMA + 1;
  CHECK(machine.make(&gpu) == Status::Invalid && said("cuda_route: 4 > 3"));
  machine.config.cuda_route = 0;
  machine.config.cuda_batch = DKV_BATCH_OFF + 1;
  CHECK(machine.make(&gpu) == Status::Invalid && said("cuda_batch"));
  machine.config.cuda_batch = 0;
  machine.config.cuda_sms_max = 5000;
  CHECK(machine.make(&gpu) == Status::Invalid && said("cuda_sms_max"));
  machine.config.cuda_sms_max = 0;
  machine.config.cuda_device = 2;
  CHECK(machine.make(&gpu) == Status::NoDevice && said("device 2 outside 0..0"));
}

// On a machine with a driver this tests another thing: that the refusal is not about the driver.
void without_a_driver_the_c_face_says_so() {
  Machine machine;
  dkv_engine* engine = nullptr;
  const dkv_status status = dkv_engine_create(&machine.config, &engine);
  CHECK(status == DKV_NO_DEVICE || status == DKV_INVALID);
  CHECK(engine == nullptr && said(status == DKV_NO_DEVICE ? "cuda:" : "pool"));
  if (status != DKV_NO_DEVICE) return;
  dkv_host_config wanted{};
  wanted.struct_size = sizeof(wanted);
  wanted.bytes = 1 << 20;
  dkv_host* host = nullptr;
  CHECK(dkv_host_create(&wanted, &host) == DKV_NO_DEVICE && host == nullptr);
  dkv_cuda_info info{};
  info.struct_size = sizeof(info);
  CHECK(dkv_cuda_get_info(0, &info) == DKV_NO_DEVICE);
  CHECK(dkv_host_create(&wanted, nullptr) == DKV_INVALID);
  wanted.struct_size = 8;
  CHECK(dkv_host_create(&wanted, &host) == DKV_INVALID);
  dkv_host_destroy(nullptr);
}

}  // namespace

int main() {
  RUN(blocks_cross_both_ways_by_every_route);
  RUN(layouts_change_on_the_way_by_every_route);
  RUN(every_part_of_a_pool_is_looked_at);
  RUN(a_copy_waits_for_the_turn_recorded_in_a_stream);
  RUN(a_lost_gpu_poisons_its_lanes_and_hangs_nobody);
  RUN(pools_must_be_where_they_belong);
  RUN(numbers_out_of_range_are_refused);
  RUN(without_a_driver_the_c_face_says_so);
  return 0;
}

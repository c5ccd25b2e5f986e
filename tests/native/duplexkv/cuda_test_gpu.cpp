// CudaGpu over a driver that is a part of the test: routes, fallbacks, trials, refusals, loss.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../check.hpp"
#include "cuda_fake.hpp"
#include "cuda_gpu.hpp"

namespace {

using namespace duplexkv::cuda;
using duplexkv::Event;
using duplexkv::GpuStatus;
using duplexkv::Progress;
using duplexkv::Route;
using duplexkv::Slice;
using duplexkv::SourceOrder;
using duplexkv::Status;
using duplexkv::Stream;
using duplexkv_test::fake;
using duplexkv_test::fake_driver;
using duplexkv_test::fake_image;
using duplexkv_test::reset_fake;

bool said(const char* part) {
  return std::strstr(duplexkv::last_error(), part) != nullptr;
}

// Segments of one size, a gap behind each; the first half of memory is the "GPU's".
struct Segments {
  Segments(std::size_t count, std::size_t bytes) : device(2 * count * bytes), host(device.size()) {
    std::uint32_t state = 5;
    for (auto* memory : {&device, &host}) {
      for (unsigned char& byte : *memory) {
        state = state * 1664525 + 1013904223;
        byte = static_cast<unsigned char>(state >> 24);
      }
    }
    for (std::size_t i = 0; i < count; ++i) {
      at_device.push_back(reinterpret_cast<std::uintptr_t>(device.data()) + 2 * i * bytes);
      at_host.push_back(reinterpret_cast<std::uintptr_t>(host.data()) + 2 * i * bytes);
      sizes.push_back(bytes);
    }
  }
  Slice out() const { return {.source = at_device, .target = at_host, .bytes = sizes}; }
  Slice in() const { return {.source = at_host, .target = at_device, .bytes = sizes}; }
  bool equal() const {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::size_t at = 2 * i * sizes[i];
      if (std::memcmp(device.data() + at, host.data() + at, sizes[i]) != 0) return false;
      // A short gap may be the same by chance.
      if (sizes[i] >= 16 &&
          std::memcmp(device.data() + at + sizes[i], host.data() + at + sizes[i], sizes[i]) == 0) {
        return false;
      }
    }
    return true;
  }

  std::vector<unsigned char> device;
  std::vector<unsigned char> host;
  std::vector<std::uintptr_t> at_device;
  std::vector<std::uintptr_t> at_host;
  std::vector<std::size_t> sizes;
};

struct Machine {
  explicit Machine(int capability = 90) {
    reset_fake().attributes[kCapabilityMajor] = capability / 10;
    fake().attributes[kCapabilityMinor] = capability % 10;
    config.driver = &fake_driver();
    config.kernels = fake_image();
    config.calibration_s = 0;
  }
  Status create() { return CudaGpu::create(config, &gpu); }
  void start(const Segments& segments) {
    config.device = {{.base = reinterpret_cast<std::uintptr_t>(segments.device.data()),
                      .bytes = segments.device.size()}};
    CHECK(create() == Status::Ok);
    CHECK(gpu->create_stream(&stream) == GpuStatus::Ok);
    fake().batches.clear();
    fake().orders.clear();
    fake().count.clear();
  }
  ~Machine() {
    fake().fail_at = -1;
    if (gpu != nullptr && stream != 0) gpu->destroy_stream(stream);
    gpu.reset();
    CHECK(fake().alive_in_all() == 0);
  }

  GpuConfig config;
  std::unique_ptr<CudaGpu> gpu;
  Stream stream = 0;
};

void large_segments_go_in_one_batch_in_the_order_asked_for() {
  Machine machine;
  const Segments segments(40, 300 << 10);
  machine.start(segments);
  CHECK(machine.gpu->batch());
  CHECK(fake().stream_flags == kStreamNonBlocking && fake().stream_priority == -5);
  CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
  CHECK(segments.equal());
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) == GpuStatus::Ok);
  CHECK((fake().batches == std::vector<std::size_t>{40, 40}));
  CHECK((fake().orders == std::vector<int>{kSourceOrderAny, kSourceOrderStream}));
  CHECK(fake().count["memcpy_async"] == 0 && fake().count["launch"] == 0);
}

void no_call_has_more_than_4096_copies() {
  Machine machine;
  machine.config.route = Route::CopyEngine;
  const Segments segments(10000, 64);
  machine.start(segments);
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) == GpuStatus::Ok);
  CHECK((fake().batches == std::vector<std::size_t>{4096, 4096, 1808}));
  CHECK(segments.equal());
}

void small_segments_to_the_device_take_the_best_kernel_there_is() {
  for (const int capability : {80, 90}) {
    Machine machine(capability);
    const Segments segments(130, 8 << 10);
    machine.start(segments);
    CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
    CHECK(segments.equal());
    CHECK(fake().count["launch"] == 1 && fake().batches.empty());
    CHECK(fake().grids.back() == 4);  // multiprocessors, as configured
    CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) ==
          GpuStatus::Ok);
    CHECK(fake().count["launch"] == 1 && fake().batches.size() == 1);
  }
}

void odd_sizes_and_addresses_pass_every_route() {
  for (const Route route : {Route::CopyEngine, Route::Register, Route::Tma}) {
    for (const std::size_t bytes : {1UL, 16UL, 33UL, 16384UL, 20000UL, 50001UL}) {
      Machine machine;
      machine.config.route = route;
      const Segments segments(20, bytes);
      machine.start(segments);
      CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
      CHECK(segments.equal());
      CHECK(fake().count["launch"] == (route == Route::CopyEngine ? 0 : 1));
    }
  }
}

void a_table_in_use_leaves_the_slice_to_the_engines() {
  Machine machine;
  machine.config.route = Route::Register;
  const Segments segments(64, 4096);
  machine.start(segments);
  fake().events_pending = true;
  for (int i = 0; i < 3; ++i) {
    CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
  }
  CHECK(fake().count["launch"] == 2 && fake().batches.size() == 1);  // two tables
  fake().events_pending = false;
  CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
  CHECK(fake().count["launch"] == 3 && segments.equal());
}

void a_launch_that_is_refused_leaves_the_slice_to_the_engines() {
  Machine machine;
  machine.config.route = Route::Tma;
  const Segments segments(64, 4096);
  machine.start(segments);
  fake().fail_name = "launch";
  fake().fail_at = fake().calls = 0;
  fake().fail_with = 701;
  CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
  CHECK(fake().batches.size() == 1 && segments.equal());
}

void a_batch_that_fails_is_copied_one_by_one_and_given_up_the_third_time() {
  Machine machine;
  machine.config.route = Route::CopyEngine;
  const Segments segments(20, 4096);
  machine.start(segments);
  fake().fail_name = "memcpy_batch";
  fake().fail_at = fake().calls = 0;
  fake().fail_count = 1000;
  for (int i = 0; i < 5; ++i) {
    CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) ==
          GpuStatus::Ok);
  }
  CHECK(segments.equal());
  CHECK(fake().count["memcpy_batch"] == 3 && fake().count["memcpy_async"] == 5 * 20);
}

void a_copy_that_fails_leaves_nothing_in_the_air() {
  Machine machine;
  machine.config.route = Route::CopyEngine;
  machine.config.batch = DKV_BATCH_OFF;
  const Segments segments(20, 4096);
  machine.start(segments);
  fake().fail_name = "memcpy_async";
  fake().calls = 0;
  fake().fail_at = 7;
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) ==
        GpuStatus::Failed);
  CHECK(fake().count["stream_synchronize"] == 1 && fake().count["memcpy_async"] == 8);
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) == GpuStatus::Ok);
  CHECK(segments.equal());
}

void a_batch_in_a_capture_is_not_replaced_by_single_copies() {
  Machine machine;
  machine.config.route = Route::CopyEngine;
  const Segments segments(20, 4096);
  machine.start(segments);
  fake().capturing.insert(reinterpret_cast<void*>(machine.stream));
  CHECK(machine.gpu->capturing(machine.stream));
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) ==
        GpuStatus::Failed);
  CHECK(fake().count["memcpy_async"] == 0);
}

void copies_are_cut_where_host_chunks_end() {
  Machine machine;
  machine.config.route = Route::CopyEngine;
  const Segments segments(8, 3000);
  machine.config.host = {.base = reinterpret_cast<std::uintptr_t>(segments.host.data()),
                         .bytes = segments.host.size(),
                         .chunk_bytes = 4096};
  machine.start(segments);
  CHECK(machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any) == GpuStatus::Ok);
  CHECK(segments.equal());
  // Segment i begins at 6000 * i: it crosses a multiple of 4096 for i = 2, 3, 4 and 6.
  int crossing = 0;
  for (int i = 0; i < 8; ++i)
    crossing += (6000 * i) / 4096 != (6000 * i + 2999) / 4096 ? 1 : 0;
  CHECK(fake().batches.back() == static_cast<std::size_t>(8 + crossing) && crossing > 0);
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) == GpuStatus::Ok);
  CHECK(segments.equal());
  // Memory that is not of these chunks is left whole.
  const Segments elsewhere(8, 3000);
  CHECK(machine.gpu->copy(machine.stream, elsewhere.in(), SourceOrder::Any) == GpuStatus::Ok);
  CHECK(elsewhere.equal() && fake().batches.back() == 8);
}

void a_trial_that_loses_a_byte_ends_batches() {
  Machine machine;
  fake().batch_loses_a_byte = true;
  const Segments segments(20, 4096);
  machine.start(segments);
  CHECK(!machine.gpu->batch());
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) == GpuStatus::Ok);
  CHECK(segments.equal() && fake().count["memcpy_batch"] == 0);
}

void batches_are_tried_only_where_they_are_trusted() {
  for (const int capability : {100, 120}) {
    Machine machine(capability);
    CHECK(machine.create() == Status::Ok);
    CHECK(!machine.gpu->batch() && fake().count["memcpy_batch"] == 0);
    machine.gpu.reset();
    machine.config.batch = DKV_BATCH_ON;
    CHECK(machine.create() == Status::Ok && machine.gpu->batch());
    machine.gpu.reset();
    fake().batch_loses_a_byte = true;
    CHECK(machine.create() == Status::Unsupported);
    CHECK(said("lost bytes"));
  }
  Machine older;
  Driver driver = fake_driver();
  driver.memcpy_batch = nullptr;
  older.config.driver = &driver;
  CHECK(older.create() == Status::Ok && !older.gpu->batch());
  older.gpu.reset();
  older.config.batch = DKV_BATCH_ON;
  CHECK(older.create() == Status::Unsupported && said("CUDA 12.8"));
}

void a_route_that_is_not_there_is_refused() {
  Machine machine(80);
  machine.config.route = Route::Tma;
  CHECK(machine.create() == Status::Unsupported);
  CHECK(said("compute capability 8.0"));
  machine.config.kernels = nullptr;
  machine.config.route = Route::Register;
  CHECK(machine.create() == Status::Unsupported);
  machine.config.route = Route::CopyEngine;
  CHECK(machine.create() == Status::Ok);
  machine.gpu.reset();
  fake().attributes[kHostPointerUsable] = 0;
  machine.config.kernels = fake_image();
  machine.config.route = Route::Register;
  CHECK(machine.create() == Status::Unsupported);
}

void too_little_shared_memory_leaves_out_the_ring() {
  Machine machine(120);
  fake().attributes[kSharedBytesOptin] = 99 << 10;
  machine.config.route = Route::Tma;
  CHECK(machine.create() == Status::Ok);  // a ring of six
  machine.gpu.reset();
  fake().attributes[kSharedBytesOptin] = 48 << 10;
  CHECK(machine.create() == Status::Unsupported);
}

void what_was_measured_is_kept_for_the_next_start() {
  const std::string path = "/tmp/duplexkv-gpu-routes-" + std::to_string(getpid());
  Machine machine;
  machine.config.calibration_s = 0.3;
  machine.config.routes_file = path.c_str();
  CHECK(machine.create() == Status::Ok);
  const duplexkv::RouteTable measured = machine.gpu->routes();
  CHECK(fake().count["launch"] > 10);
  machine.gpu.reset();
  fake().count.clear();
  CHECK(machine.create() == Status::Ok);
  CHECK(fake().count["launch"] == 0 && machine.gpu->routes() == measured);
  machine.gpu.reset();
  fake().driver_version = 13010;
  CHECK(machine.create() == Status::Ok);
  CHECK(fake().count["launch"] > 10);
  machine.gpu.reset();
  std::remove(path.c_str());
}

void streams_of_callers_are_recorded_and_waited_on_only() {
  Machine machine;
  const Segments segments(20, 4096);
  machine.start(segments);
  int callers = 0;
  const auto stream = reinterpret_cast<Stream>(&callers);
  Event event = 0;
  CHECK(machine.gpu->create_event(&event) == GpuStatus::Ok);
  for (const Stream legacy : {Stream{0}, Stream{1}}) {
    CHECK(machine.gpu->record(event, legacy) == GpuStatus::Failed && said("legacy stream"));
    CHECK(machine.gpu->wait(legacy, event) == GpuStatus::Failed);
    CHECK(machine.gpu->wait_external(legacy, event) == GpuStatus::Failed);
  }
  CHECK(machine.gpu->record(event, stream) == GpuStatus::Ok);
  CHECK(machine.gpu->wait(stream, event) == GpuStatus::Ok && fake().wait_flags == 0);
  CHECK(machine.gpu->copy(stream, segments.out(), SourceOrder::InStream) == GpuStatus::Failed);
  fake().capturing.insert(&callers);
  CHECK(machine.gpu->record(event, stream) == GpuStatus::Failed && said("being captured"));
  CHECK(machine.gpu->wait_external(stream, event) == GpuStatus::Ok);
  CHECK(fake().wait_flags == kEventExternal);
  CHECK(machine.gpu->query(event) == Progress::Done);
  fake().events_pending = true;
  CHECK(machine.gpu->query(event) == Progress::Pending);
  machine.gpu->destroy_event(event);
}

void a_lost_device_stays_lost() {
  Machine machine;
  const Segments segments(20, 4096);
  machine.start(segments);
  Event event = 0;
  CHECK(machine.gpu->create_event(&event) == GpuStatus::Ok);
  fake().lost = true;
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) ==
        GpuStatus::Lost);
  CHECK(machine.gpu->query(event) == Progress::Lost);
  CHECK(machine.gpu->record(event, machine.stream) == GpuStatus::Lost);
  fake().lost = false;  // what a driver answers afterwards is not believed
  CHECK(machine.gpu->query(event) == Progress::Lost);
  CHECK(machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream) ==
        GpuStatus::Lost);
  machine.gpu->drain(machine.stream);
  machine.gpu->destroy_event(event);
}

void whatever_call_fails_nothing_stays_behind() {
  const Segments segments(20, 1040);
  int made = 0;
  for (std::int64_t number = 0; number < 90; ++number) {
    Machine machine;
    machine.config.device = {{.base = reinterpret_cast<std::uintptr_t>(segments.device.data()),
                              .bytes = segments.device.size()}};
    fake().fail_at = number;
    fake().fail_with = kOutOfMemory;
    if (machine.create() != Status::Ok) continue;
    if (machine.gpu->create_stream(&machine.stream) != GpuStatus::Ok) continue;
    const GpuStatus in = machine.gpu->copy(machine.stream, segments.in(), SourceOrder::Any);
    const GpuStatus out = machine.gpu->copy(machine.stream, segments.out(), SourceOrder::InStream);
    CHECK(in != GpuStatus::Lost && out != GpuStatus::Lost);
    CHECK(in != GpuStatus::Ok || segments.equal());
    ++made;
  }
  CHECK(made > 30 && made < 90);  // the destructor of each compares what is alive
}

}  // namespace

int main() {
  RUN(large_segments_go_in_one_batch_in_the_order_asked_for);
  RUN(no_call_has_more_than_4096_copies);
  RUN(small_segments_to_the_device_take_the_best_kernel_there_is);
  RUN(odd_sizes_and_addresses_pass_every_route);
  RUN(a_table_in_use_leaves_the_slice_to_the_engines);
  RUN(a_launch_that_is_refused_leaves_the_slice_to_the_engines);
  RUN(a_batch_that_fails_is_copied_one_by_one_and_given_up_the_third_time);
  RUN(a_copy_that_fails_leaves_nothing_in_the_air);
  RUN(a_batch_in_a_capture_is_not_replaced_by_single_copies);
  RUN(copies_are_cut_where_host_chunks_end);
  RUN(a_trial_that_loses_a_byte_ends_batches);
  RUN(batches_are_tried_only_where_they_are_trusted);
  RUN(a_route_that_is_not_there_is_refused);
  RUN(too_little_shared_memory_leaves_out_the_ring);
  RUN(what_was_measured_is_kept_for_the_next_start);
  RUN(streams_of_callers_are_recorded_and_waited_on_only);
  RUN(a_lost_device_stays_lost);
  RUN(whatever_call_fails_nothing_stays_behind);
  return 0;
}

// A published engine, seen from a compute stream: what it waits for, when it marks, what it does
// while a graph is captured.
#include <array>
#include <cstring>
#include <thread>
#include <vector>

#include "../check.hpp"
#include "engine_port.hpp"

namespace {

using duplexkv::Direction;
using duplexkv::Engine;
using duplexkv::Event;
using duplexkv::GpuStatus;
using duplexkv::Progress;
using duplexkv::Status;
using duplexkv::Stream;

constexpr Stream kCompute = 0x50;

// A GPU on which everything happens at once; writes down what the compute stream is asked.
class PromptGpu final : public duplexkv::Gpu {
 public:
  GpuStatus create_stream(Stream* out) noexcept override {
    *out = 0x100 + next_++;
    return GpuStatus::Ok;
  }
  void destroy_stream(Stream) noexcept override {}
  GpuStatus create_event(Event* out) noexcept override {
    *out = 0x100 + next_++;
    return GpuStatus::Ok;
  }
  void destroy_event(Event) noexcept override {}
  GpuStatus record(Event, Stream stream) noexcept override {
    if (stream == kCompute) ++marks;
    return GpuStatus::Ok;
  }
  GpuStatus wait(Stream stream, Event) noexcept override {
    if (stream == kCompute) ++waits;
    return GpuStatus::Ok;
  }
  GpuStatus wait_external(Stream stream, Event) noexcept override {
    CHECK(stream == kCompute && captured);
    ++graph_waits;
    return GpuStatus::Ok;
  }
  Progress query(Event) noexcept override { return done ? Progress::Done : Progress::Pending; }
  GpuStatus copy(Stream, const duplexkv::Slice&, duplexkv::SourceOrder) noexcept override {
    return GpuStatus::Ok;
  }
  bool capturing(Stream stream) noexcept override { return stream == kCompute && captured; }
  void drain(Stream) noexcept override { done = true; }

  std::atomic<bool> done{true};
  std::atomic<bool> captured{false};
  std::atomic<int> marks{0};
  std::atomic<int> waits{0};
  std::atomic<int> graph_waits{0};

 private:
  std::atomic<std::uintptr_t> next_{0};
};

struct Published {
  std::shared_ptr<PromptGpu> gpu = std::make_shared<PromptGpu>();
  std::array<std::byte, 4096> device{};
  std::array<std::byte, 4096> host{};
  std::unique_ptr<Engine> engine;
  dkv_berth* berth = nullptr;

  explicit Published(const char* key) {
    duplexkv::EngineConfig config;
    config.device = {.base = device.data(), .blocks = 16};
    config.host = {.base = host.data(), .blocks = 16};
    config.block_bytes = 256;
    duplexkv::EngineParts parts;
    parts.gpu = gpu;
    CHECK(Engine::create(config, std::move(parts), &engine) == Status::Ok);
    CHECK(duplexkv::publish_engine(key, engine.get()) == Status::Ok);
    CHECK(dkv_engine_lookup(key, &berth) == DKV_OK);
  }
  ~Published() { duplexkv::Registry::instance().forget(engine.get()); }
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  // A copy in of one block, in the lane's stream and not ended.
  std::int64_t copy_in(std::int32_t slot) const {
    const std::array<std::int32_t, 1> slots{slot};
    const std::array<std::int64_t, 2> offsets{0, 1};
    const std::array<std::int64_t, 1> after{-1};
    std::int64_t ticket = 0;
    CHECK(engine->submit(Direction::H2D, {slots, slots, offsets, after}, &ticket) == Status::Ok);
    return ticket;
  }
  void step(std::int64_t turn, std::int64_t ticket) const {
    CHECK(dkv_berth_step(berth, turn, &ticket, 1) == DKV_OK);
  }
  dkv_status wait() const {
    dkv_status status = DKV_BUSY;  // until the lane has put the copy into its stream
    while (status == DKV_BUSY) {
      status = dkv_berth_wait(berth, 0, reinterpret_cast<void*>(kCompute));
      std::this_thread::yield();
    }
    return status;
  }
  dkv_status mark(std::uint32_t layer, std::uint32_t layers) const {
    return dkv_berth_mark(berth, layer, layers, reinterpret_cast<void*>(kCompute));
  }
};

void a_step_without_copies_waits_for_nothing() {
  const Published published("nothing");
  published.step(1, 0);
  CHECK(published.wait() == DKV_OK);
  CHECK(published.gpu->waits == 0);
}

void the_stream_waits_for_the_copies_of_its_step() {
  const Published published("copies");
  published.gpu->done = false;
  published.step(1, published.copy_in(3));
  CHECK(published.wait() == DKV_OK);
  CHECK(published.gpu->waits == 1);
  published.gpu->done = true;
}

void only_the_last_layer_marks_the_turn() {
  const Published published("layers");
  published.step(7, 0);
  CHECK(published.mark(0, 3) == DKV_OK && published.mark(1, 3) == DKV_OK);
  CHECK(published.gpu->marks == 0);
  CHECK(published.mark(2, 3) == DKV_OK);
  CHECK(published.gpu->marks == 1);
}

void in_a_graph_waits_are_external_and_nothing_is_marked() {
  const Published published("graph");
  published.step(2, published.copy_in(1));
  published.gpu->captured = true;
  CHECK(published.wait() == DKV_OK);
  CHECK(published.mark(0, 1) == DKV_OK);
  CHECK(published.gpu->graph_waits == 1);
  CHECK(published.gpu->waits == 0 && published.gpu->marks == 0);
  published.gpu->captured = false;
  // Behind the launch, the host says what the graph could not.
  CHECK(published.engine->mark_stream(2, kCompute) == Status::Ok);
  CHECK(published.gpu->marks == 1);
}

void a_poisoned_engine_refuses_every_call() {
  const Published published("poisoned");
  published.step(1, 0);
  CHECK(published.engine->poison(Direction::D2H) == Status::Ok);
  CHECK(published.wait() == DKV_POISONED);
  CHECK(published.mark(0, 2) == DKV_POISONED);
}

void a_gpu_that_reads_no_plan_refuses_rotations() {
  const Published published("plans");
  dkv_rotation rotation{};
  rotation.struct_size = sizeof(rotation);
  auto* stream = reinterpret_cast<void*>(kCompute);
  CHECK(dkv_berth_rotate(published.berth, &rotation, stream) == DKV_UNSUPPORTED);
  CHECK(std::strstr(dkv_last_error(), "nothing that reads a plan") != nullptr);
  std::uint64_t rows = 0;
  CHECK(dkv_berth_refused(published.berth, DKV_D2H, &rows) == DKV_UNSUPPORTED);
  CHECK(dkv_berth_rotate(published.berth, nullptr, stream) == DKV_INVALID);
}

void an_engine_that_goes_leaves_its_berth_empty() {
  dkv_berth* berth = nullptr;
  {
    const Published published("brief");
    published.step(1, 0);
    CHECK(published.wait() == DKV_OK);
    berth = published.berth;
  }
  CHECK(dkv_berth_wait(berth, 0, reinterpret_cast<void*>(kCompute)) == DKV_ABSENT);
  const Published next("brief");
  CHECK(next.berth == berth);
}

}  // namespace

int main() {
  RUN(a_step_without_copies_waits_for_nothing);
  RUN(the_stream_waits_for_the_copies_of_its_step);
  RUN(only_the_last_layer_marks_the_turn);
  RUN(in_a_graph_waits_are_external_and_nothing_is_marked);
  RUN(a_poisoned_engine_refuses_every_call);
  RUN(a_gpu_that_reads_no_plan_refuses_rotations);
  RUN(an_engine_that_goes_leaves_its_berth_empty);
  return 0;
}

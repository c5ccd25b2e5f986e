// Timelines, and the engine's dealings with streams: marks, waits, graphs, cancels, two urgencies.
#include <algorithm>
#include <cstring>
#include <limits>

#include "backends.hpp"
#include "rig.hpp"
#include "timeline.hpp"
#include "turns.hpp"
#include "virtual_gpu.hpp"

namespace {

using duplexkv::Direction;
using duplexkv::EngineConfig;
using duplexkv::GpuStatus;
using duplexkv::Progress;
using duplexkv::Status;
using duplexkv::Stream;
using duplexkv::Timeline;
using duplexkv::Turns;
using duplexkv_test::Group;
using duplexkv_test::Ids;
using duplexkv_test::Landed;
using duplexkv_test::Rig;
using duplexkv_test::VirtualGpu;

constexpr Direction D2H = Direction::D2H;
constexpr Direction H2D = Direction::H2D;

// Work that ends when the test says so.
class Gate {
 public:
  std::function<void()> work() {
    return [this] { open_.wait(false); };
  }
  void open() {
    open_.store(true);
    open_.notify_all();
  }

 private:
  std::atomic<bool> open_{false};
};

// A virtual GPU without delays, an engine over it, and a compute stream.
struct GpuRig {
  std::shared_ptr<VirtualGpu> gpu =
      std::make_shared<VirtualGpu>(duplexkv_test::VirtualGpuOptions{.delay_max = {}});
  Stream stream = 0;
  std::unique_ptr<Rig> rig;

  explicit GpuRig(EngineConfig config = {}) {
    CHECK(gpu->create_stream(&stream) == GpuStatus::Ok);
    duplexkv::EngineParts parts;
    parts.gpu = gpu;
    rig = std::make_unique<Rig>(std::move(parts), config);
  }
  ~GpuRig() {
    gpu->drain(stream);
    rig.reset();
    gpu->destroy_stream(stream);
    CHECK(gpu->alive() == 0);
  }
  duplexkv::Engine& engine() const { return *rig->engine; }
  // Sets the first word of a device slot when compute gets there.
  void write(std::int32_t slot, std::uint64_t value) const {
    auto* word = reinterpret_cast<std::uint64_t*>(&rig->at(rig->device, slot));
    gpu->run(stream, [word, value] { duplexkv_test::store_word(word, value); });
  }
  std::uint64_t device_word(std::int32_t slot) const {
    return duplexkv_test::load_word(reinterpret_cast<std::uint64_t*>(&rig->at(rig->device, slot)));
  }
  std::uint64_t host_word(std::int32_t slot) const {
    return duplexkv_test::load_word(reinterpret_cast<std::uint64_t*>(&rig->at(rig->host, slot)));
  }
  // Waits until the lane has the ticket's copies in its stream.
  Status wait_in_stream(std::int64_t ticket) const {
    Status status = Status::Busy;
    while (status == Status::Busy) {
      status = engine().stream_wait(ticket, stream);
      std::this_thread::yield();
    }
    return status;
  }
};

bool error_has(const char* part) {
  return std::strstr(duplexkv::last_error(), part) != nullptr;
}

void a_timeline_waits_once_and_never_for_what_is_done() {
  VirtualGpu gpu({.delay_max = {}});
  Stream from = 0;
  Stream to = 0;
  CHECK(gpu.create_stream(&from) == GpuStatus::Ok && gpu.create_stream(&to) == GpuStatus::Ok);
  {
    Timeline timeline(&gpu, 2);
    std::uint64_t waited = 0;
    Gate gate;
    CHECK(timeline.poll() == Progress::Done && timeline.completed() == 0);
    CHECK(timeline.wait(to, 1, &waited) == GpuStatus::Failed);  // nothing recorded
    gpu.run(from, gate.work());
    CHECK(timeline.record(from, 3) == GpuStatus::Ok && timeline.record(from, 7) == GpuStatus::Ok);
    CHECK(timeline.full() && timeline.record(from, 8) == GpuStatus::Failed);
    CHECK(timeline.poll() == Progress::Pending && timeline.completed() == 0);
    CHECK(timeline.wait(to, 2, &waited) == GpuStatus::Ok && waited == 3);  // the first at or behind
    CHECK(timeline.wait(to, 3, &waited) == GpuStatus::Ok && gpu.waits() == 1);
    CHECK(timeline.wait(to, 4, &waited) == GpuStatus::Ok && waited == 7 && gpu.waits() == 2);
    CHECK(timeline.wait(to, 8, &waited) == GpuStatus::Failed && waited == 7);
    gate.open();
    gpu.drain(from);
    CHECK(timeline.poll() == Progress::Done && timeline.completed() == 7);
    std::uint64_t other = 0;
    CHECK(timeline.wait(to, 7, &other) == GpuStatus::Ok && gpu.waits() == 2);
    for (std::uint64_t sequence = 8; sequence < 40; ++sequence) {  // events come back
      CHECK(timeline.record(from, sequence) == GpuStatus::Ok);
      gpu.drain(from);
    }
    CHECK(gpu.alive() == 4);
    gpu.lose();
    CHECK(timeline.record(from, 50) == GpuStatus::Lost);
  }
  gpu.destroy_stream(from);
  gpu.destroy_stream(to);
}

void turns_know_what_has_ended_and_what_can_be_waited_for() {
  VirtualGpu gpu({.delay_max = {}});
  Stream compute = 0;
  CHECK(gpu.create_stream(&compute) == GpuStatus::Ok);
  {
    Turns turns(&gpu);
    Gate gate;
    CHECK(turns.ended(-1) && !turns.ended(0) && !turns.ordered(0));
    gpu.run(compute, gate.work());
    CHECK(turns.record(4, compute) == GpuStatus::Ok);
    CHECK(turns.ordered(4) && !turns.ended(0) && !turns.ended_or_lost(0) && !turns.ordered(5));
    turns.mark(2);
    turns.mark(1);
    CHECK(turns.ended(2) && !turns.ended(3));
    gate.open();
    gpu.drain(compute);
    CHECK(!turns.ended(4) && turns.ended_or_lost(4) && turns.ended(4));
    std::int64_t turn = 5;
    Gate second;
    gpu.run(compute, second.work());
    while (turns.record(turn, compute) == GpuStatus::Ok)
      ++turn;
    CHECK(turns.full() && turn == 5 + 64 && turns.ordered(turn - 1) && !turns.ordered(turn));
    second.open();
    gpu.drain(compute);
    CHECK(turns.record(turn, compute) == GpuStatus::Ok);
    Turns host(nullptr);
    host.mark(0);
    CHECK(host.ordered(0) && !host.ordered(1) && !host.ended_or_lost(1));
  }
  gpu.destroy_stream(compute);
}

void a_recorded_turn_lets_copies_start_and_they_wait_on_the_gpu() {
  const GpuRig rig;
  Gate gate;
  rig.gpu->run(rig.stream, gate.work());
  rig.write(3, 33);
  std::int64_t ticket = 0;
  CHECK(rig.rig->submit(D2H, {{{3}, {5}, 7}}, &ticket) == Status::Ok);
  CHECK(rig.engine().stream_wait(ticket, rig.stream) == Status::Busy);  // turn 7 is not known
  CHECK(rig.engine().mark_stream(7, rig.stream) == Status::Ok);
  CHECK(rig.wait_in_stream(ticket) == Status::Ok);  // in the lane's stream, not copied
  CHECK(rig.rig->poll().empty() && rig.host_word(5) == 0);
  rig.write(3, 34);  // behind the copy: the stream waits for it
  gate.open();
  CHECK(rig.rig->collect(1).front().outcome == DKV_DONE);
  CHECK(rig.host_word(5) == 33);
  rig.gpu->drain(rig.stream);
  CHECK(rig.device_word(3) == 34);
  CHECK(rig.gpu->any_copies() == 0);
  const std::uint64_t waits = rig.gpu->waits();
  CHECK(rig.engine().stream_wait(ticket, rig.stream) == Status::Ok);  // told: costs nothing
  CHECK(rig.rig->submit(D2H, {{{3}, {5}, 7}}) == Status::Ok);
  CHECK(rig.rig->collect(1).size() == 1 && rig.gpu->waits() == waits);
}

void a_lane_makes_each_wait_once() {
  EngineConfig config;
  config.slice.bytes = 256;
  const GpuRig rig(config);
  Gate gate;
  rig.gpu->run(rig.stream, gate.work());
  CHECK(rig.engine().mark_stream(1, rig.stream) == Status::Ok);
  std::vector<Group> groups;
  for (std::int32_t slot = 0; slot < 20; ++slot)
    groups.push_back({{slot}, {slot}, slot % 2});
  CHECK(rig.rig->submit(D2H, groups) == Status::Ok);
  CHECK(rig.wait_in_stream(1) == Status::Ok);
  const std::uint64_t by_the_test = 1;
  gate.open();
  CHECK(rig.rig->collect(20).size() == 20);
  CHECK(rig.gpu->waits() - by_the_test == 1);
}

void waits_and_marks_refuse_what_orders_nothing() {
  const GpuRig rig;
  duplexkv::Engine& engine = rig.engine();
  for (const Stream legacy : {Stream{0}, Stream{1}}) {
    CHECK(engine.mark_stream(1, legacy) == Status::Invalid && error_has("legacy"));
    CHECK(engine.stream_wait(1, legacy) == Status::Invalid && error_has("legacy"));
  }
  CHECK(engine.stream_wait(1, rig.stream) == Status::Invalid && error_has("never given out"));
  CHECK(engine.cancel(-3) == Status::Invalid);
  CHECK(engine.graph_wait(rig.stream) == Status::Invalid && error_has("no graph"));
  rig.gpu->begin_capture(rig.stream);
  CHECK(engine.mark_stream(1, rig.stream) == Status::Invalid && error_has("captured"));
  std::int64_t ticket = 0;
  CHECK(rig.rig->submit(D2H, {{{1}, {1}}}, &ticket) == Status::Ok);
  CHECK(engine.stream_wait(ticket, rig.stream) == Status::Invalid);
  rig.gpu->end_capture(rig.stream);
  CHECK(rig.rig->collect(1).size() == 1);
  Rig host;
  CHECK(host.engine->mark_stream(1, 77) == Status::Unsupported && error_has("no streams"));
  CHECK(host.engine->stream_wait(1, 77) == Status::Unsupported);
}

// Captured once, launched often: each launch sees what came in before it.
void a_graph_waits_for_the_copies_before_each_launch() {
  const GpuRig rig;
  std::atomic<int> bad{0};
  std::uint64_t expected = 0;
  const auto* word = reinterpret_cast<std::uint64_t*>(&rig.rig->at(rig.rig->device, 9));
  rig.gpu->begin_capture(rig.stream);
  CHECK(rig.engine().graph_wait(rig.stream) == Status::Ok);
  rig.gpu->run(rig.stream, [&] { bad += duplexkv_test::load_word(word) == expected ? 0 : 1; });
  const auto graph = rig.gpu->end_capture(rig.stream);
  for (std::uint64_t round = 1; round <= 50; ++round) {
    expected = round;
    std::memcpy(&rig.rig->at(rig.rig->host, 2), &round, sizeof(round));
    std::int64_t ticket = 0;
    CHECK(rig.rig->submit(H2D, {{{2}, {9}}}, &ticket) == Status::Ok);
    // Known to be in the lane's stream by a wait of another stream.
    Stream other = 0;
    CHECK(rig.gpu->create_stream(&other) == GpuStatus::Ok);
    while (rig.engine().stream_wait(ticket, other) == Status::Busy)
      std::this_thread::yield();
    rig.gpu->launch(rig.stream, graph);
    rig.gpu->drain(rig.stream);
    rig.gpu->destroy_stream(other);
    CHECK(rig.rig->collect(1).size() == 1);
  }
  CHECK(bad == 0 && rig.gpu->any_copies() >= 50);
}

void cancelled_in_the_queue_copies_nothing_and_frees_its_slots_at_once() {
  Rig rig;
  rig.at(rig.device, 1) = std::byte{11};
  rig.at(rig.device, 2) = std::byte{22};
  CHECK(rig.submit(D2H, {{{0}, {0}, 3}, {{1}, {1}, 3}, {{2}, {2}, 3}}) == Status::Ok);
  CHECK(rig.engine->cancel(2) == Status::Ok && rig.engine->cancel(2) == Status::Ok);
  CHECK(rig.stats(D2H).unpolled_bytes == 2 * 256);
  CHECK(rig.submit(H2D, {{{1}, {1}}}) == Status::Ok);  // both slots are free
  CHECK((rig.collect(1) == std::vector<Landed>{{4, DKV_DONE}}));
  CHECK(rig.engine->mark(3) == Status::Ok);
  CHECK((rig.collect(3) == std::vector<Landed>{{1, DKV_DONE}, {2, DKV_CANCELLED}, {3, DKV_DONE}}));
  CHECK(rig.at(rig.host, 1) == std::byte{0} && rig.at(rig.host, 2) == std::byte{22});
  CHECK(rig.engine->cancel(2) == Status::Ok);  // was told: no effect
  const dkv_stats stats = rig.stats(D2H);
  CHECK(stats.groups_cancelled == 1 && stats.groups_done == 2 && stats.unpolled_bytes == 0);
  // Alone, with nothing marked: told without any copy.
  CHECK(rig.submit(D2H, {{{5}, {5}, 99}, {{6}, {6}, 99}}) == Status::Ok);
  CHECK(rig.engine->cancel(5) == Status::Ok && rig.engine->cancel(6) == Status::Ok);
  CHECK((rig.collect(2) == std::vector<Landed>{{5, DKV_CANCELLED}, {6, DKV_CANCELLED}}));
}

void cancelled_in_the_air_keeps_its_slots_until_it_is_told() {
  EngineConfig config;
  config.slice.bytes = 256;
  const GpuRig rig(config);
  Gate gate;
  rig.gpu->run(rig.stream, gate.work());
  CHECK(rig.engine().mark_stream(1, rig.stream) == Status::Ok);
  Ids many{4, 5, 6, 7, 8, 9, 10, 11};
  CHECK(rig.rig->submit(H2D, {{{3}, {3}, 1}, {many, many, 1}}) == Status::Ok);
  CHECK(rig.wait_in_stream(1) == Status::Ok);
  CHECK(rig.engine().cancel(1) == Status::Ok);
  CHECK(rig.engine().stream_wait(1, rig.stream) == Status::Invalid && error_has("will not arrive"));
  CHECK(rig.rig->submit(D2H, {{{3}, {40}}}) == Status::Overlap);  // the target
  CHECK(rig.rig->submit(D2H, {{{20}, {3}}}) == Status::Overlap);  // the source
  CHECK(rig.rig->poll().empty());
  CHECK(rig.engine().cancel(2) == Status::Ok);  // most of its slices are not fed yet
  gate.open();
  CHECK((rig.rig->collect(2) == std::vector<Landed>{{1, DKV_CANCELLED}, {2, DKV_CANCELLED}}));
  CHECK(rig.rig->stats(H2D).slices <= 3 && rig.rig->stats(H2D).groups_cancelled == 2);
  CHECK(rig.rig->submit(D2H, {{{3}, {40}}, {{20}, {3}}}) == Status::Ok);
  CHECK(rig.rig->collect(2).size() == 2);
}

// Eager groups: overtaken by urgent ones, held until their turn has ended, first to find no room.
void eager_copies_step_back() {
  EngineConfig config;
  config.slice.bytes = 256;
  config.bytes_per_s = {1e6, 0};  // a slice takes a quarter of a millisecond
  Rig rig(32, 64, 256, duplexkv_test::host_backends(), config);
  std::vector<Group> eager;
  for (std::int32_t slot = 0; slot < 16; ++slot)
    eager.push_back({{slot}, {slot}});
  std::int64_t urgent = 0;
  CHECK(rig.submit(D2H, eager, nullptr, DKV_EAGER) == Status::Ok);
  CHECK(rig.submit(D2H, {{{20}, {20}}, {{21}, {21}}}, &urgent) == Status::Ok);
  const std::vector<Landed> told = rig.collect(18);
  const auto place = [&](std::int64_t ticket) {
    return std::find(told.begin(), told.end(), Landed{ticket, DKV_DONE}) - told.begin();
  };
  CHECK(place(urgent) < place(16) && place(urgent + 1) < place(16));
  for (std::int64_t ticket = 1; ticket < 16; ++ticket)
    CHECK(place(ticket) < place(ticket + 1));
}

void eager_copies_find_the_queue_full_first() {
  EngineConfig config;
  config.queue_groups_max = 8;
  config.queue_bytes_max = 8 * 256;
  Rig rig(32, 64, 256, duplexkv_test::host_backends(), config);
  CHECK(rig.submit(D2H, {{{0}, {0}, 0}, {{1}, {1}, 0}, {{2}, {2}, 0}}, nullptr, DKV_EAGER) ==
        Status::Ok);
  CHECK(rig.submit(D2H, {{{3}, {3}, 0}, {{4}, {4}, 0}}, nullptr, DKV_EAGER) == Status::Busy);
  CHECK(rig.submit(D2H, {{{3}, {3}, 0}}, nullptr, DKV_EAGER) == Status::Ok);
  CHECK(rig.submit(D2H, {{{4, 5}, {4, 5}, 0}, {{6}, {6}, 0}, {{7}, {7}, 0}}) == Status::Ok);
  CHECK(rig.submit(D2H, {{{8}, {8}, 0}}) == Status::Busy);
  CHECK(rig.engine->mark(0) == Status::Ok);
  CHECK(rig.collect(7).size() == 7);
  CHECK(rig.submit(D2H, {{{8}, {8}}}, nullptr, 64) == Status::Unsupported && error_has("flags"));
}

// An eager copy that waited in the lane's stream would hold up the tail behind it.
void an_eager_copy_of_a_running_turn_holds_up_nothing() {
  const GpuRig rig;
  Gate gate;
  rig.gpu->run(rig.stream, gate.work());
  CHECK(rig.engine().mark_stream(5, rig.stream) == Status::Ok);
  CHECK(rig.rig->submit(D2H, {{{1}, {1}, 5}}, nullptr, DKV_EAGER) == Status::Ok);
  CHECK(rig.rig->submit(D2H, {{{2}, {2}}}) == Status::Ok);
  CHECK((rig.rig->collect(1) == std::vector<Landed>{{2, DKV_DONE}}));
  gate.open();
  CHECK((rig.rig->collect(1) == std::vector<Landed>{{1, DKV_DONE}}));
}

}  // namespace

int main() {
  RUN(a_timeline_waits_once_and_never_for_what_is_done);
  RUN(turns_know_what_has_ended_and_what_can_be_waited_for);
  RUN(a_recorded_turn_lets_copies_start_and_they_wait_on_the_gpu);
  RUN(a_lane_makes_each_wait_once);
  RUN(waits_and_marks_refuse_what_orders_nothing);
  RUN(a_graph_waits_for_the_copies_before_each_launch);
  RUN(cancelled_in_the_queue_copies_nothing_and_frees_its_slots_at_once);
  RUN(cancelled_in_the_air_keeps_its_slots_until_it_is_told);
  RUN(eager_copies_step_back);
  RUN(eager_copies_find_the_queue_full_first);
  RUN(an_eager_copy_of_a_running_turn_holds_up_nothing);
  return 0;
}

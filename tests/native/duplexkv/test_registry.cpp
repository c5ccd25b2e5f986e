// Engines by name: who lies where, what a step says, and that a withdrawal waits for visitors.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../check.hpp"
#include "duplexkv/registry.h"

namespace {

// Writes down what it is asked.
struct Recorder {
  std::vector<std::int64_t> waited;
  std::vector<std::int64_t> marked;
  std::vector<std::uint32_t> layers;
  dkv_status answer = DKV_OK;

  static dkv_status wait(void* self, std::int64_t ticket, void*) {
    auto* recorder = static_cast<Recorder*>(self);
    recorder->waited.push_back(ticket);
    return recorder->answer;
  }
  static dkv_status mark(void* self, std::int64_t turn, std::uint32_t layer, std::uint32_t, void*) {
    auto* recorder = static_cast<Recorder*>(self);
    recorder->marked.push_back(turn);
    recorder->layers.push_back(layer);
    return recorder->answer;
  }
  [[nodiscard]] dkv_port port() {
    return {.struct_size = sizeof(dkv_port),
            .reserved = 0,
            .self = this,
            .wait = wait,
            .mark = mark,
            .rotate = nullptr,
            .refused = nullptr};
  }
};

dkv_berth* berth_of(const char* key) {
  dkv_berth* berth = nullptr;
  CHECK(dkv_engine_lookup(key, &berth) == DKV_OK);
  CHECK(berth != nullptr);
  return berth;
}

void a_name_has_one_berth_for_ever() {
  dkv_berth* berth = berth_of("one");
  CHECK(berth == berth_of("one"));
  CHECK(berth != berth_of("other"));
  Recorder recorder;
  const dkv_port port = recorder.port();
  CHECK(dkv_port_publish("one", &port) == DKV_OK);
  CHECK(berth == berth_of("one"));
  CHECK(dkv_port_publish("one", &port) == DKV_BUSY);
  CHECK(std::strstr(dkv_last_error(), "\"one\"") != nullptr);
  CHECK(dkv_engine_withdraw("one") == DKV_OK);
  CHECK(dkv_engine_withdraw("one") == DKV_OK);
  CHECK(dkv_port_publish("one", &port) == DKV_OK);
  CHECK(dkv_engine_withdraw("one") == DKV_OK);
}

void names_and_structs_are_checked() {
  dkv_berth* berth = nullptr;
  CHECK(dkv_engine_lookup(nullptr, &berth) == DKV_INVALID);
  CHECK(dkv_engine_lookup("", &berth) == DKV_INVALID);
  CHECK(dkv_engine_lookup("name", nullptr) == DKV_INVALID);
  const std::string longest(DKV_KEY_BYTES_MAX, 'k');
  CHECK(dkv_engine_lookup(longest.c_str(), &berth) == DKV_OK);
  CHECK(dkv_engine_lookup((longest + "k").c_str(), &berth) == DKV_INVALID);
  CHECK(berth == nullptr);
  Recorder recorder;
  dkv_port port = recorder.port();
  CHECK(dkv_port_publish("name", nullptr) == DKV_INVALID);
  port.struct_size = sizeof(dkv_port) - 1;
  CHECK(dkv_port_publish("name", &port) == DKV_INVALID);
  port.struct_size = sizeof(dkv_port) + 1;
  CHECK(dkv_port_publish("name", &port) == DKV_UNSUPPORTED);
  port = recorder.port();
  port.mark = nullptr;
  CHECK(dkv_port_publish("name", &port) == DKV_INVALID);
}

void a_step_says_what_is_waited_for_and_marked() {
  dkv_berth* berth = berth_of("step");
  CHECK(dkv_berth_wait(berth, 0, nullptr) == DKV_ABSENT);
  CHECK(dkv_berth_mark(berth, 0, 1, nullptr) == DKV_ABSENT);
  Recorder recorder;
  const dkv_port port = recorder.port();
  CHECK(dkv_port_publish("step", &port) == DKV_OK);
  CHECK(dkv_berth_wait(berth, 0, nullptr) == DKV_OUT_OF_RANGE);
  CHECK(dkv_berth_mark(berth, 0, 1, nullptr) == DKV_INVALID);
  const std::vector<std::int64_t> tickets{7, 0};
  CHECK(dkv_berth_step(berth, 3, tickets.data(), 2) == DKV_OK);
  CHECK(dkv_berth_wait(berth, 0, nullptr) == DKV_OK);
  CHECK(dkv_berth_wait(berth, 1, nullptr) == DKV_OK);
  CHECK(dkv_berth_wait(berth, 2, nullptr) == DKV_OUT_OF_RANGE);
  CHECK(dkv_berth_wait_ticket(berth, 9, nullptr) == DKV_OK);
  CHECK(dkv_berth_wait_ticket(berth, -1, nullptr) == DKV_INVALID);
  CHECK((recorder.waited == std::vector<std::int64_t>{7, 0, 9}));
  CHECK(dkv_berth_mark(berth, 1, 2, nullptr) == DKV_OK);
  CHECK(dkv_berth_mark(berth, 2, 2, nullptr) == DKV_OUT_OF_RANGE);
  CHECK((recorder.marked == std::vector<std::int64_t>{3}));
  CHECK((recorder.layers == std::vector<std::uint32_t>{1}));
  const std::int64_t negative = -5;
  CHECK(dkv_berth_step(berth, 4, &negative, 1) == DKV_INVALID);
  CHECK(dkv_berth_step(berth, -1, tickets.data(), 2) == DKV_INVALID);
  CHECK(dkv_berth_step(berth, 4, nullptr, 1) == DKV_INVALID);
  CHECK(dkv_berth_step(berth, 4, tickets.data(), DKV_STEP_GROUPS_MAX + 1) == DKV_TOO_LARGE);
  recorder.answer = DKV_POISONED;
  CHECK(dkv_berth_wait(berth, 0, nullptr) == DKV_POISONED);
  dkv_rotation rotation{};
  rotation.struct_size = sizeof(rotation);
  CHECK(dkv_berth_rotate(berth, &rotation, nullptr) == DKV_UNSUPPORTED);
  std::uint64_t rows = 0;
  CHECK(dkv_berth_refused(berth, DKV_H2D, &rows) == DKV_UNSUPPORTED);
  CHECK(dkv_berth_refused(berth, DKV_H2D + 1, &rows) == DKV_INVALID);
  CHECK(dkv_berth_refused(berth, DKV_H2D, nullptr) == DKV_INVALID);
  CHECK(dkv_engine_withdraw("step") == DKV_OK);
  // The next engine of this name starts without the last one's step.
  CHECK(dkv_port_publish("step", &port) == DKV_OK);
  CHECK(dkv_berth_wait(berth, 0, nullptr) == DKV_OUT_OF_RANGE);
  CHECK(dkv_engine_withdraw("step") == DKV_OK);
}

// Alive while published; a call that meets a dead one has come too late.
struct Mortal {
  std::atomic<bool> alive{true};
  std::atomic<std::uint64_t> calls{0};

  static dkv_status wait(void* self, std::int64_t, void*) {
    auto* mortal = static_cast<Mortal*>(self);
    CHECK(mortal->alive.load());
    mortal->calls.fetch_add(1);
    std::this_thread::yield();
    CHECK(mortal->alive.load());
    return DKV_OK;
  }
  static dkv_status mark(void*, std::int64_t, std::uint32_t, std::uint32_t, void*) {
    return DKV_OK;
  }
};

void a_withdrawal_waits_for_those_inside() {
  dkv_berth* berth = berth_of("mortal");
  std::atomic<bool> over{false};
  std::vector<std::thread> visitors;
  visitors.reserve(3);
  for (int thread = 0; thread < 3; ++thread) {
    visitors.emplace_back([&] {
      while (!over.load()) {
        const dkv_status status = dkv_berth_wait_ticket(berth, 1, nullptr);
        CHECK(status == DKV_OK || status == DKV_ABSENT);
      }
    });
  }
  for (int life = 0; life < 60; ++life) {
    Mortal mortal;
    const dkv_port port{.struct_size = sizeof(dkv_port),
                        .reserved = 0,
                        .self = &mortal,
                        .wait = Mortal::wait,
                        .mark = Mortal::mark,
                        .rotate = nullptr,
                        .refused = nullptr};
    CHECK(dkv_port_publish("mortal", &port) == DKV_OK);
    while (mortal.calls.load() == 0)
      std::this_thread::yield();
    CHECK(dkv_engine_withdraw("mortal") == DKV_OK);
    mortal.alive.store(false);
  }
  over.store(true);
  for (std::thread& visitor : visitors)
    visitor.join();
}

// An engine whose lanes are threads of the host has nothing a stream could wait for.
void an_engine_without_streams_is_not_published() {
  std::vector<std::byte> memory(1024);
  dkv_config config{};
  config.struct_size = sizeof(config);
  config.backend = DKV_BACKEND_HOST;
  config.device_base = memory.data();
  config.device_blocks = 2;
  config.host_base = memory.data() + 512;
  config.host_blocks = 2;
  config.block_bytes = 256;
  dkv_engine* engine = nullptr;
  CHECK(dkv_engine_create(&config, &engine) == DKV_OK);
  CHECK(dkv_engine_publish("threads", engine) == DKV_UNSUPPORTED);
  CHECK(dkv_engine_publish("threads", nullptr) == DKV_INVALID);
  dkv_engine_destroy(engine);
}

}  // namespace

int main() {
  RUN(a_name_has_one_berth_for_ever);
  RUN(names_and_structs_are_checked);
  RUN(a_step_says_what_is_waited_for_and_marked);
  RUN(a_withdrawal_waits_for_those_inside);
  RUN(an_engine_without_streams_is_not_published);
  return 0;
}

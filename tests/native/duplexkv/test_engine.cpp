// The engine and its lanes: bytes, order, marks, limits, failures, close.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>

#include "backends.hpp"
#include "engine.hpp"
#include "rig.hpp"

namespace {

using duplexkv::Direction;
using duplexkv::Engine;
using duplexkv::EngineConfig;
using duplexkv::Progress;
using duplexkv::Status;
using duplexkv_test::Backends;
using duplexkv_test::FailingBackend;
using duplexkv_test::Group;
using duplexkv_test::host_backends;
using duplexkv_test::Ids;
using duplexkv_test::Landed;
using duplexkv_test::parts_of;
using duplexkv_test::Rig;
using duplexkv_test::ThreadedBackend;

constexpr Direction D2H = Direction::D2H;
constexpr Direction H2D = Direction::H2D;

Backends failing_d2h(std::uint64_t at, Progress how) {
  return {std::make_unique<FailingBackend>(at, how), duplexkv::make_host_backend()};
}

Backends threaded(std::size_t depth) {
  return {std::make_unique<ThreadedBackend>(depth), std::make_unique<ThreadedBackend>(depth)};
}

bool error_has(const char* part) {
  return std::strstr(duplexkv::last_error(), part) != nullptr;
}

// Random rotations through small slices and small queues, against copies done at once. Slots change
// hands only when a poll has told that they may.
class Trace {
 public:
  Trace(Backends backends, std::uint64_t seed, double bytes_per_s)
      : random_(seed), rig_(kDevice, kHost, kBytes, std::move(backends), config(bytes_per_s)) {
    for (std::byte& byte : rig_.device)
      byte = static_cast<std::byte>(random_());
    for (std::byte& byte : rig_.host)
      byte = static_cast<std::byte>(random_());
    device_ = rig_.device;
    host_ = rig_.host;
  }

  void run(std::int64_t turns) {
    for (std::int64_t turn = 0; turn < turns; ++turn) {
      for (const Direction direction : {D2H, H2D})
        rotate(direction, turn);
      // Marks come in bursts, so that the queues fill whatever the speed of the machine.
      const bool marked = random_() % 5 == 0;
      if (marked) CHECK(rig_.engine->mark(turn) == Status::Ok);
      land(marked && random_() % 4 == 0 ? rig_.collect(air_.size()) : rig_.poll());
    }
    CHECK(rig_.engine->mark(turns) == Status::Ok);
    land(rig_.collect(air_.size()));
    CHECK(air_.empty() && used_device_.empty() && used_host_.empty());
    CHECK(rig_.device == device_ && rig_.host == host_);
    CHECK(refused_ > 0);
  }

 private:
  static constexpr std::int32_t kDevice = 24;
  static constexpr std::int32_t kHost = 48;
  static constexpr std::uint64_t kBytes = 256;

  struct Pairs {
    Ids device;
    Ids host;
  };

  static EngineConfig config(double bytes_per_s) {
    EngineConfig config;
    config.slice = {.bytes = 700, .descriptors = 3};
    config.queue_groups_max = 9;
    config.queue_bytes_max = kBytes * 20;
    config.bytes_per_s = {bytes_per_s, bytes_per_s};
    return config;
  }

  // Up to `wanted` pairs of slots that nobody uses, now used.
  Pairs pick(std::uint64_t wanted) {
    Pairs pairs;
    for (; wanted > 0; --wanted) {
      const auto on_device = static_cast<std::int32_t>(random_() % kDevice);
      const auto on_host = static_cast<std::int32_t>(random_() % kHost);
      if (used_device_.contains(on_device) || used_host_.contains(on_host)) continue;
      used_device_.insert(on_device);
      used_host_.insert(on_host);
      pairs.device.push_back(on_device);
      pairs.host.push_back(on_host);
    }
    return pairs;
  }

  void give_back(const Pairs& pairs) {
    for (const std::int32_t id : pairs.device)
      used_device_.erase(id);
    for (const std::int32_t id : pairs.host)
      used_host_.erase(id);
  }

  void rotate(Direction direction, std::int64_t turn) {
    std::vector<Group> groups;
    std::vector<Pairs> all;
    for (std::uint64_t group = 1 + random_() % 3; group > 0; --group) {
      Pairs pairs = pick(1 + random_() % 4);
      if (pairs.device.empty()) continue;
      const std::int64_t after = turn - static_cast<std::int64_t>(random_() % 2);
      groups.push_back(direction == D2H ? Group{pairs.device, pairs.host, after}
                                        : Group{pairs.host, pairs.device, after});
      all.push_back(std::move(pairs));
    }
    if (groups.empty()) return;
    std::int64_t ticket = 0;
    const Status status = rig_.submit(direction, groups, &ticket);
    if (status == Status::Busy) {
      ++refused_;
      for (const Pairs& pairs : all)
        give_back(pairs);
      return;
    }
    CHECK(status == Status::Ok);
    for (Pairs& pairs : all) {
      copy_at_once(direction, pairs);
      air_.emplace(ticket++, std::move(pairs));
    }
  }

  void copy_at_once(Direction direction, const Pairs& pairs) {
    for (std::size_t i = 0; i < pairs.device.size(); ++i) {
      std::byte* const on_device = &rig_.at(device_, pairs.device[i]);
      std::byte* const on_host = &rig_.at(host_, pairs.host[i]);
      std::memcpy(direction == D2H ? on_host : on_device, direction == D2H ? on_device : on_host,
                  kBytes);
    }
  }

  void land(const std::vector<Landed>& landed) {
    for (const Landed& item : landed) {
      CHECK(item.outcome == DKV_DONE);
      const auto at = air_.find(item.ticket);
      CHECK(at != air_.end());
      give_back(at->second);
      air_.erase(at);
    }
  }

  std::mt19937_64 random_;
  Rig rig_;
  std::vector<std::byte> device_;
  std::vector<std::byte> host_;
  std::set<std::int32_t> used_device_;
  std::set<std::int32_t> used_host_;
  std::map<std::int64_t, Pairs> air_;
  int refused_ = 0;
};

void random_traces_are_byte_exact() {
  for (std::uint64_t seed = 0; seed < 8; ++seed)
    Trace(host_backends(), seed, 0).run(1500);
}

void random_traces_on_a_slow_link_are_byte_exact() {
  for (std::uint64_t seed = 0; seed < 2; ++seed)
    Trace(host_backends(), seed, 1e8).run(300);
}

void random_traces_with_helpers_are_byte_exact() {
  for (const unsigned threads : {1U, 2U, 3U})
    Trace(host_backends(threads), threads, 0).run(1000);
}

void random_traces_through_an_asynchronous_backend_are_byte_exact() {
  for (std::uint64_t seed = 0; seed < 4; ++seed)
    Trace(threaded(1 + seed), seed, 0).run(400);
}

void slices_overlap_as_deep_as_the_backend_allows() {
  auto d2h = std::make_unique<ThreadedBackend>(2);
  ThreadedBackend* const backend = d2h.get();
  EngineConfig config;
  config.slice.bytes = 256;
  Rig rig(32, 64, 256, {std::move(d2h), duplexkv::make_host_backend()}, config);
  std::size_t deepest = 0;
  for (std::int32_t round = 0; round < 200 && deepest < 2; ++round) {
    Ids ids;
    for (std::int32_t i = 0; i < 30; ++i)
      ids.push_back(i);
    CHECK(rig.submit(D2H, {{ids, ids, -1}}) == Status::Ok);
    rig.collect(1);
    deepest = backend->in_air_max();
    CHECK(deepest <= 2);
  }
  CHECK(deepest == 2);
  const dkv_stats stats = rig.stats(D2H);
  CHECK(stats.slices % 30 == 0 && stats.bytes == stats.slices * 256);
}

void a_group_waits_for_its_mark_and_holds_those_behind() {
  Rig rig;
  rig.at(rig.device, 3) = std::byte{33};
  CHECK(rig.submit(D2H, {{{1}, {1}}, {{3}, {3}, 5}, {{4}, {4}}}) == Status::Ok);
  CHECK((rig.collect(1) == std::vector<Landed>{{1, DKV_DONE}}));
  CHECK(rig.engine->mark(4) == Status::Ok);
  CHECK(rig.submit(H2D, {{{9}, {9}}}) == Status::Ok);
  CHECK((rig.collect(1) == std::vector<Landed>{{4, DKV_DONE}}));
  CHECK(rig.stats(D2H).queued_groups == 2);
  rig.at(rig.device, 3) = std::byte{34};  // the batch of turn 5 is still writing
  CHECK(rig.engine->mark(5) == Status::Ok);
  CHECK((rig.collect(2) == std::vector<Landed>{{2, DKV_DONE}, {3, DKV_DONE}}));
  CHECK(rig.at(rig.host, 3) == std::byte{34});
  CHECK(rig.engine->mark(1) == Status::Ok);  // goes back by nothing
  CHECK(rig.submit(D2H, {{{5}, {5}, 5}}) == Status::Ok);
  CHECK(rig.collect(1).size() == 1);
}

void busy_queues_nothing() {
  EngineConfig config;
  config.queue_groups_max = 3;
  config.queue_bytes_max = 1024;
  Rig rig(32, 64, 256, host_backends(), config);
  CHECK(rig.submit(D2H, {{{0}, {0}, 0}, {{1}, {1}, 0}}) == Status::Ok);
  CHECK(rig.submit(D2H, {{{2}, {2}}, {{3}, {3}}}) == Status::Busy);  // groups
  CHECK(rig.submit(D2H, {{{2, 3, 4}, {2, 3, 4}}}) == Status::Busy);  // bytes
  CHECK(rig.submit(D2H, {{{2, 3}, {2, 3}, 0}}) == Status::Ok);       // exactly full
  CHECK(rig.submit(D2H, {{{5}, {5}}}) == Status::Busy);
  CHECK(rig.submit(H2D, {{{40}, {20}}}) == Status::Ok);  // the other lane has a queue of its own
  CHECK(rig.stats(D2H).unpolled_groups == 3 && rig.stats(D2H).unpolled_bytes == 1024);
  CHECK(rig.engine->mark(0) == Status::Ok);
  CHECK(rig.collect(4).size() == 4);
  CHECK(rig.stats(D2H).unpolled_groups == 0 && rig.stats(D2H).unpolled_bytes == 0);
  Ids many{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  CHECK(rig.submit(D2H, {{many, many}}) == Status::Ok);  // larger than the queue, but alone
  CHECK(rig.collect(1).size() == 1);
  const Group one{{0}, {0}};
  CHECK(rig.submit(D2H, {one, one, one, one}) != Status::Ok);
  CHECK(rig.submit(D2H, {{{0}, {0}}, {{1}, {1}}, {{2}, {2}}, {{3}, {3}}}) == Status::TooLarge);
  CHECK(error_has("queue_groups_max 3"));
}

void copies_that_would_race_are_refused_and_take_nothing() {
  Rig rig;
  CHECK(rig.submit(D2H, {{{1, 2}, {10, 11}, 0}}) == Status::Ok);
  CHECK(rig.submit(D2H, {{{3, 4}, {12, 11}}}) == Status::Overlap);    // write, write
  CHECK(rig.submit(H2D, {{{20, 11}, {20, 21}}}) == Status::Overlap);  // read of a target
  CHECK(rig.submit(H2D, {{{20, 21}, {20, 2}}}) == Status::Overlap);   // write of a source
  CHECK(error_has("slot 2 is used by a copy in the air"));
  CHECK(rig.submit(D2H, {{{5}, {30}}, {{6}, {30}}}) ==
        Status::Overlap);  // two groups of one submit
  // All that was refused is free again, and a source may be read twice.
  CHECK(rig.submit(D2H, {{{1, 3, 4}, {12, 13, 30}, 0}}) == Status::Ok);
  CHECK(rig.submit(H2D, {{{20, 21}, {20, 21}}}) == Status::Ok);
  CHECK(rig.engine->mark(0) == Status::Ok);
  CHECK(rig.collect(3).size() == 3);
  CHECK(rig.submit(H2D, {{{10, 11}, {2, 1}}}) == Status::Ok);
  CHECK(rig.collect(1).size() == 1);
}

void a_failed_slice_fails_its_groups_only() {
  EngineConfig config;
  config.slice.bytes = 512;  // two blocks
  Rig rig(32, 64, 256, failing_d2h(1, Progress::Failed), config);
  // The first slice is {1, 3}: all of group 1 and the start of group 2.
  CHECK(rig.submit(D2H, {{{1}, {1}, 0}, {{3, 5}, {3, 5}, 0}, {{7}, {7}, 0}, {{9}, {9}, 0}}) ==
        Status::Ok);
  CHECK(rig.engine->mark(0) == Status::Ok);
  CHECK((rig.collect(4) ==
         std::vector<Landed>{{1, DKV_FAILED}, {2, DKV_FAILED}, {3, DKV_DONE}, {4, DKV_DONE}}));
  CHECK(rig.submit(D2H, {{{3}, {3}}}) == Status::Ok);  // the lane goes on, its slots are free
  CHECK((rig.collect(1) == std::vector<Landed>{{5, DKV_DONE}}));
  const dkv_stats stats = rig.stats(D2H);
  CHECK(stats.groups_done == 3 && stats.groups_failed == 2 && stats.slices == 3);
  CHECK(stats.poisoned == 0 && stats.bytes == 4 * 256);
}

void a_lost_lane_fails_everything_and_refuses_fast() {
  EngineConfig config;
  config.slice.bytes = 256;
  Rig rig(32, 64, 256, failing_d2h(3, Progress::Lost), config);
  CHECK(rig.submit(D2H, {{{1}, {1}}, {{2, 4, 6}, {2, 4, 6}}, {{8}, {8}, 99}}) == Status::Ok);
  CHECK((rig.collect(3) == std::vector<Landed>{{1, DKV_DONE}, {2, DKV_FAILED}, {3, DKV_FAILED}}));
  CHECK(rig.submit(D2H, {{{1}, {1}}}) == Status::Poisoned);
  CHECK(error_has("d2h lane"));
  CHECK(rig.stats(D2H).poisoned == 1 && rig.stats(H2D).poisoned == 0);
  CHECK(rig.submit(H2D, {{{1}, {1}}}) == Status::Ok);  // the other direction lives
  CHECK((rig.collect(1) == std::vector<Landed>{{4, DKV_DONE}}));
}

void poison_from_outside_ends_what_waits() {
  Rig rig(32, 64, 256, threaded(2));
  CHECK(rig.submit(H2D, {{{1}, {1}, 7}, {{2}, {2}, 8}}) == Status::Ok);
  CHECK(rig.engine->poison(H2D) == Status::Ok);
  CHECK((rig.collect(2) == std::vector<Landed>{{1, DKV_FAILED}, {2, DKV_FAILED}}));
  CHECK(rig.submit(H2D, {{{1}, {1}}}) == Status::Poisoned);
  CHECK(rig.engine->close() == Status::Ok);
}

void close_while_busy_cancels_and_tells_of_every_group() {
  for (int round = 0; round < 30; ++round) {
    EngineConfig config;
    config.slice.bytes = 512;
    config.bytes_per_s = {1e6, 1e6};  // 16 KiB a slice at least: 16 ms each
    Rig rig(200, 200, 4096, round % 2 == 0 ? host_backends() : threaded(2), config);
    Ids ids;
    for (std::int32_t i = 0; i < 199; ++i)
      ids.push_back(i);
    CHECK(rig.submit(D2H, {{{199}, {199}}, {ids, ids}}) == Status::Ok);
    if (round % 3 == 0) rig.collect(1);
    const auto begin = std::chrono::steady_clock::now();
    CHECK(rig.engine->close() == Status::Ok && rig.engine->close() == Status::Ok);
    // All of it would take 0.8 s on this link; what is left after a slice is dropped.
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(700));
    const std::vector<Landed> landed = rig.poll();
    CHECK(landed.size() == (round % 3 == 0 ? 1 : 2));
    CHECK((landed.back() == Landed{2, DKV_CANCELLED}));
    CHECK(rig.poll().empty());
    CHECK(rig.submit(D2H, {{{1}, {1}}}) == Status::Closed && rig.engine->mark(1) == Status::Closed);
    bool any = true;
    CHECK(rig.engine->wait(std::chrono::seconds(60), &any) == Status::Ok && !any);
  }
}

void wait_ends_by_itself() {
  Rig rig;
  bool any = true;
  CHECK(rig.engine->wait(std::chrono::nanoseconds::max(), &any) == Status::Ok && !any);  // all idle
  CHECK(rig.submit(D2H, {{{1}, {1}, 3}}) == Status::Ok);
  CHECK(rig.engine->wait(std::chrono::milliseconds(1), &any) == Status::Ok && !any);  // held
  CHECK(rig.engine->wait(std::chrono::nanoseconds(-1), &any) == Status::Invalid);
  CHECK(rig.engine->mark(3) == Status::Ok);
  CHECK(rig.engine->wait(std::chrono::nanoseconds::max(), &any) == Status::Ok && any);
  CHECK(rig.poll().size() == 1);
}

void small_polls_starve_no_direction() {
  Rig rig;
  CHECK(rig.submit(D2H, {{{0}, {0}}, {{1}, {1}}, {{2}, {2}}, {{3}, {3}}}) == Status::Ok);
  CHECK(rig.submit(H2D, {{{40}, {10}}, {{41}, {11}}}) == Status::Ok);
  while (rig.stats(D2H).queued_groups + rig.stats(H2D).queued_groups > 0)
    std::this_thread::yield();
  std::int64_t ticket = 0;
  std::uint8_t outcome = 0;
  std::vector<std::int64_t> told;
  for (std::size_t count = 1; count > 0;) {
    CHECK(rig.engine->poll({&ticket, 1}, {&outcome, 1}, &count) == Status::Ok);
    if (count > 0) told.push_back(ticket);
  }
  CHECK((told == std::vector<std::int64_t>{1, 5, 2, 6, 3, 4}));
}

void configurations_that_cannot_work_name_their_field() {
  std::vector<std::byte> memory(64 * 64);
  EngineConfig good;
  good.device = {.base = memory.data(), .blocks = 16};
  good.host = {.base = memory.data() + 32 * 64, .blocks = 32};
  good.block_bytes = 64;
  const auto refused = [](const EngineConfig& config, const char* word) {
    std::unique_ptr<Engine> engine;
    CHECK(Engine::create(config, parts_of(host_backends()), &engine) == Status::Invalid &&
          engine == nullptr);
    CHECK(error_has(word));
  };
  EngineConfig bad = good;
  bad.block_bytes = 0;
  refused(bad, "block_bytes");
  bad = good;
  bad.block_bytes = UINT64_MAX / 2;
  refused(bad, "device pool");
  bad = good;
  bad.device.base = nullptr;
  refused(bad, "device pool");
  bad = good;
  bad.host.blocks = 0;
  refused(bad, "host pool");
  bad = good;
  bad.host.base = memory.data() + 15 * 64;
  refused(bad, "share memory");
  for (const double rate : {-1.0, 1.0, std::numeric_limits<double>::infinity(),
                            std::numeric_limits<double>::quiet_NaN()}) {
    bad = good;
    bad.bytes_per_s[1] = rate;
    refused(bad, "bytes_per_s");
  }
  bad = good;
  bad.queue_groups_max = 0;
  refused(bad, "queue_groups_max");
  bad = good;
  bad.slice.bytes = (32 << 20) + 1;
  refused(bad, "slice_bytes_max");
  bad = good;
  bad.slice.descriptors = 4097;
  refused(bad, "slice_descriptors_max");
  std::unique_ptr<Engine> engine;
  CHECK(Engine::create(good, parts_of(host_backends()), &engine) == Status::Ok);
}

void a_slice_of_a_slow_link_is_about_a_millisecond() {
  EngineConfig config;
  config.bytes_per_s = {1e9, 0};
  Rig rig(64, 64, 1 << 16, host_backends(), config);
  Ids ids;
  for (std::int32_t i = 0; i < 64; ++i)
    ids.push_back(i);
  CHECK(rig.submit(D2H, {{ids, ids}}) == Status::Ok);
  rig.collect(1);
  const std::uint64_t slices = rig.stats(D2H).slices;
  CHECK(slices >= 4 && slices <= 5);  // 4 MiB at 1 MB a slice
  CHECK(rig.stats(D2H).busy_ns >= 4000000 / 2);
  CHECK(rig.submit(H2D, {{ids, ids}}) == Status::Ok);
  rig.collect(1);
  CHECK(rig.stats(H2D).slices == 1 && rig.stats(H2D).descriptors == 1);
}

void the_child_of_a_fork_is_refused() {
#if defined(__SANITIZE_THREAD__)
  std::fprintf(stderr, "  skipped: a thread sanitizer does not follow a fork with threads\n");
#else
  Rig rig;
  CHECK(rig.submit(D2H, {{{1}, {1}}}) == Status::Ok);
  const pid_t child = fork();
  if (child == 0) {
    std::int64_t ticket = 0;
    std::uint8_t outcome = 0;
    std::size_t count = 0;
    bool any = false;
    dkv_stats stats{};
    const bool refused = rig.engine->forked() && rig.submit(D2H, {{{2}, {2}}}) == Status::Forked &&
                         rig.engine->mark(1) == Status::Forked &&
                         rig.engine->poll({&ticket, 1}, {&outcome, 1}, &count) == Status::Forked &&
                         rig.engine->wait(std::chrono::seconds(9), &any) == Status::Forked &&
                         rig.engine->poison(D2H) == Status::Forked &&
                         rig.engine->stats(D2H, &stats) == Status::Forked &&
                         rig.engine->close() == Status::Forked;
    _exit(refused ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(rig.collect(1).size() == 1);
#endif
}

}  // namespace

int main() {
  RUN(random_traces_are_byte_exact);
  RUN(random_traces_on_a_slow_link_are_byte_exact);
  RUN(random_traces_with_helpers_are_byte_exact);
  RUN(random_traces_through_an_asynchronous_backend_are_byte_exact);
  RUN(slices_overlap_as_deep_as_the_backend_allows);
  RUN(a_group_waits_for_its_mark_and_holds_those_behind);
  RUN(busy_queues_nothing);
  RUN(copies_that_would_race_are_refused_and_take_nothing);
  RUN(a_failed_slice_fails_its_groups_only);
  RUN(a_lost_lane_fails_everything_and_refuses_fast);
  RUN(poison_from_outside_ends_what_waits);
  RUN(close_while_busy_cancels_and_tells_of_every_group);
  RUN(wait_ends_by_itself);
  RUN(small_polls_starve_no_direction);
  RUN(configurations_that_cannot_work_name_their_field);
  RUN(a_slice_of_a_slow_link_is_about_a_millisecond);
  RUN(the_child_of_a_fork_is_refused);
  return 0;
}

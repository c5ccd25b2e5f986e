// Threads against each other, for the thread sanitizer: every slot starts with a plain int that the
// writer before a copy sets and the reader behind it checks. A missing happens-before edge of
// compute -> mark -> copy -> land -> poll -> compute is a report, a wrong order is a wrong value.
#include <atomic>
#include <cstring>
#include <optional>
#include <random>
#include <thread>

#include "backends.hpp"
#include "engine.hpp"
#include "rig.hpp"

namespace {

using duplexkv::Direction;
using duplexkv::EngineConfig;
using duplexkv::Status;
using duplexkv_test::Backends;
using duplexkv_test::Group;
using duplexkv_test::host_backends;
using duplexkv_test::Landed;
using duplexkv_test::Rig;
using duplexkv_test::ThreadedBackend;

// A value handed to another thread with one edge and nothing more.
template <typename Value>
class Slot {
 public:
  void put(Value value) {
    value_ = value;
    full_.store(true, std::memory_order_release);
  }
  Value take() {
    while (!full_.exchange(false, std::memory_order_acquire))
      std::this_thread::yield();
    return value_;
  }

 private:
  std::atomic<bool> full_{false};
  Value value_{};
};

int* first_int(Rig& rig, std::vector<std::byte>& pool, std::int32_t id) {
  return reinterpret_cast<int*>(&rig.at(pool, id));
}

// A driver and a compute thread as in the executor: compute writes device slots in turn t, the
// driver marks t, the copies out run, come back to other slots, and compute of a later turn reads.
void compute_and_copies_share_slots_by_marks_and_polls(Backends backends) {
  constexpr std::int32_t kPairs = 8;
  constexpr int kTurns = 400;
  EngineConfig config;
  config.slice.bytes = 1024;
  Rig rig(2 * kPairs, kPairs, 512, std::move(backends), config);
  Slot<int> to_compute;
  Slot<int> from_compute;
  std::thread compute([&] {
    for (int turn = 0; turn < kTurns; ++turn) {
      const int value = to_compute.take();
      for (std::int32_t i = 0; i < kPairs; ++i) {
        if (turn > 0) CHECK(*first_int(rig, rig.device, kPairs + i) == value - 100 + i);
        *first_int(rig, rig.device, i) = value + i;
      }
      from_compute.put(turn);
    }
  });
  for (std::int64_t turn = 0; turn < kTurns; ++turn) {
    std::vector<Group> outward;
    std::vector<Group> inward;
    for (std::int32_t i = 0; i < kPairs; ++i)
      outward.push_back({{i}, {i}, turn});
    for (std::int32_t i = 0; i < kPairs; ++i)
      inward.push_back({{i}, {kPairs + i}, -1});
    CHECK(rig.submit(Direction::D2H, outward) == Status::Ok);  // before its turn has ended
    to_compute.put(static_cast<int>(turn) * 100);
    CHECK(from_compute.take() == turn);
    CHECK(rig.engine->mark(turn) == Status::Ok);
    rig.collect(kPairs);
    for (std::int32_t i = 0; i < kPairs; ++i) {
      CHECK(*first_int(rig, rig.host, i) == static_cast<int>(turn) * 100 + i);
    }
    CHECK(rig.submit(Direction::H2D, inward) == Status::Ok);
    rig.collect(kPairs);
  }
  compute.join();
}

// Several threads submit, mark, poll and read statistics on one engine, each on slots of its own.
void many_threads_use_one_engine() {
  constexpr std::int32_t kThreads = 4;
  constexpr std::int32_t kSlots = 8;
  constexpr int kRounds = 300;
  EngineConfig config;
  config.queue_groups_max = 12;  // small enough to be busy
  config.slice.bytes = 600;
  Rig rig(kThreads * kSlots, kThreads * kSlots, 256, host_backends(), config);
  constexpr std::size_t kTickets = 1 << 16;
  std::vector<std::atomic<bool>> landed(kTickets);
  std::atomic<int> busy{0};
  std::vector<std::thread> threads;
  for (std::int32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937_64 random(static_cast<std::uint64_t>(thread));
      // Whoever polls tells the owner through `landed`.
      const auto finish = [&](std::int64_t ticket) {
        while (!landed[static_cast<std::size_t>(ticket)].load(std::memory_order_acquire)) {
          for (const Landed& item : rig.poll()) {
            CHECK(item.outcome == DKV_DONE);
            landed[static_cast<std::size_t>(item.ticket)].store(true, std::memory_order_release);
          }
          std::this_thread::yield();
        }
      };
      const auto copy = [&](Direction direction, const Group& group) {
        std::int64_t ticket = 0;
        Status status = rig.submit(direction, {group}, &ticket);
        while (status == Status::Busy) {
          busy.fetch_add(1, std::memory_order_relaxed);
          for (const Landed& item : rig.poll()) {
            landed[static_cast<std::size_t>(item.ticket)].store(true, std::memory_order_release);
          }
          std::this_thread::yield();
          status = rig.submit(direction, {group}, &ticket);
        }
        CHECK(status == Status::Ok);
        finish(ticket);
      };
      for (int round = 0; round < kRounds; ++round) {
        const std::int32_t base = thread * kSlots;
        const auto from = static_cast<std::int32_t>(random() % kSlots) + base;
        const auto to = static_cast<std::int32_t>(random() % kSlots) + base;
        *first_int(rig, rig.device, from) = round;
        copy(Direction::D2H, {{from}, {to}, round});
        CHECK(*first_int(rig, rig.host, to) == round);
        copy(Direction::H2D, {{to}, {base}});
        CHECK(*first_int(rig, rig.device, base) == round);
        (void)rig.stats(Direction::D2H);
      }
    });
  }
  // One more that marks: a group may start only once its round is marked.
  threads.emplace_back([&] {
    for (int round = 0; round < kRounds; ++round) {
      CHECK(rig.engine->mark(round) == Status::Ok);
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads)
    thread.join();
  CHECK(rig.poll().empty());
  CHECK(rig.stats(Direction::D2H).groups_done == kThreads * kRounds);
}

// close() and poison() from another thread while submits come in: every accepted group is told of.
void close_and_poison_race_with_submits() {
  for (int round = 0; round < 60; ++round) {
    EngineConfig config;
    config.slice.bytes = 256;
    Backends backends = round % 2 == 0 ? host_backends()
                                       : Backends{std::make_unique<ThreadedBackend>(2),
                                                  std::make_unique<ThreadedBackend>(2)};
    Rig rig(16, 16, 256, std::move(backends), config);
    std::atomic<bool> started{false};
    std::thread ender([&] {
      while (!started.load(std::memory_order_acquire))
        std::this_thread::yield();
      if (round % 3 == 0) {
        CHECK(rig.engine->poison(Direction::D2H) == Status::Ok);
      } else {
        CHECK(rig.engine->close() == Status::Ok);
      }
    });
    std::size_t accepted = 0;
    std::size_t told = 0;
    for (std::int32_t i = 0;; i = (i + 1) % 16) {
      const Status status = rig.submit(Direction::D2H, {{{i}, {i}}});
      if (status == Status::Ok) ++accepted;
      started.store(true, std::memory_order_release);
      if (status == Status::Closed || status == Status::Poisoned) break;
      CHECK(status == Status::Ok || status == Status::Overlap);
      told += rig.poll().size();
    }
    ender.join();
    told += rig.collect(accepted - told).size();
    CHECK(told == accepted);
  }
}

// A lane asks for a turn, the host marks it meanwhile, and there is no GPU to ask.
void a_turn_ends_between_two_looks_at_it() {
  constexpr std::int64_t kTurns = 100'000;
  duplexkv::Turns turns(nullptr);
  std::atomic<std::int64_t> asked{-1};
  std::thread lane([&] {
    for (std::int64_t turn = 0; turn < kTurns; ++turn) {
      asked.store(turn);
      while (!turns.ended_or_lost(turn)) {
      }
    }
  });
  for (std::int64_t turn = 0; turn < kTurns; ++turn) {
    while (asked.load() < turn) {
    }
    turns.mark(turn);
  }
  lane.join();
  CHECK(turns.ended(kTurns - 1) && !turns.ended_or_lost(kTurns));
}

}  // namespace

int main() {
  RUN([] { compute_and_copies_share_slots_by_marks_and_polls(host_backends()); });
  RUN([] {
    compute_and_copies_share_slots_by_marks_and_polls(
        {std::make_unique<ThreadedBackend>(2), std::make_unique<ThreadedBackend>(3)});
  });
  RUN(many_threads_use_one_engine);
  RUN(close_and_poison_race_with_submits);
  RUN(a_turn_ends_between_two_looks_at_it);
  return 0;
}

// The rate that engines share: time is an argument, so that every nanosecond of it can be judged.
#include <algorithm>
#include <array>
#include <random>
#include <thread>
#include <vector>

#include "../check.hpp"
#include "budget.hpp"
#include "rig.hpp"

namespace {

using duplexkv::Budget;
using duplexkv::BudgetSeat;
using duplexkv::Rank;
using duplexkv::SharedBudget;
using duplexkv_test::Rig;
using std::chrono::microseconds;
using std::chrono::nanoseconds;
using Time = Budget::Time;

const Time kStart = Time{} + std::chrono::hours(1);

void slices_follow_each_other_at_the_rate() {
  Budget budget(1e9);
  const std::size_t one = budget.join();
  const std::size_t two = budget.join();
  Time retry{};
  CHECK(budget.ask(one, Rank::Eager, 1000, kStart, &retry));
  CHECK(!budget.ask(two, Rank::Eager, 500, kStart, &retry));
  CHECK(retry == kStart + nanoseconds(1000));
  CHECK(!budget.ask(one, Rank::Eager, 700, kStart + nanoseconds(999), &retry));
  CHECK(budget.ask(two, Rank::Eager, 500, kStart + nanoseconds(1000), &retry));
  // Late by 2,000 ns: its grant began when the one before it had crossed.
  CHECK(budget.ask(one, Rank::Eager, 700, kStart + nanoseconds(3500), &retry));
  CHECK(budget.ask(two, Rank::Eager, 1, kStart + nanoseconds(3500), &retry));
}

void a_resume_goes_before_what_waits_longer() {
  Budget budget(1e9);
  const std::size_t eager = budget.join();
  const std::size_t leave = budget.join();
  const std::size_t resume = budget.join();
  Time retry{};
  CHECK(budget.ask(eager, Rank::Eager, 1000, kStart, &retry));
  CHECK(!budget.ask(eager, Rank::Eager, 1000, kStart + nanoseconds(1), &retry));
  CHECK(!budget.ask(leave, Rank::Leave, 1000, kStart + nanoseconds(2), &retry));
  CHECK(!budget.ask(resume, Rank::Resume, 1000, kStart + nanoseconds(3), &retry));
  // Whoever wakes first: the eager one asks when the resume's time has come, and still waits.
  CHECK(!budget.ask(eager, Rank::Eager, 1000, kStart + nanoseconds(1000), &retry));
  CHECK(retry == kStart + nanoseconds(2000));
  CHECK(!budget.ask(leave, Rank::Leave, 1000, kStart + nanoseconds(1001), &retry));
  CHECK(budget.ask(resume, Rank::Resume, 1000, kStart + nanoseconds(1002), &retry));
  CHECK(budget.ask(leave, Rank::Leave, 1000, kStart + nanoseconds(2000), &retry));
  CHECK(budget.ask(eager, Rank::Eager, 1000, kStart + nanoseconds(3000), &retry));
}

void a_lane_may_think_again_while_it_waits() {
  Budget budget(1e9);
  const std::size_t one = budget.join();
  const std::size_t two = budget.join();
  Time retry{};
  CHECK(budget.ask(one, Rank::Leave, 1000, kStart, &retry));
  CHECK(!budget.ask(two, Rank::Eager, 100, kStart, &retry));
  CHECK(!budget.ask(two, Rank::Leave, 4000, kStart + nanoseconds(500), &retry));
  CHECK(budget.ask(two, Rank::Leave, 4000, kStart + nanoseconds(1000), &retry));
  CHECK(!budget.ask(one, Rank::Leave, 1, kStart + nanoseconds(1000), &retry));
  CHECK(retry == kStart + nanoseconds(5000));
}

void who_leaves_waits_no_more() {
  Budget budget(1e9);
  const std::size_t one = budget.join();
  const std::size_t two = budget.join();
  Time retry{};
  CHECK(budget.ask(one, Rank::Leave, 1000, kStart, &retry));
  CHECK(!budget.ask(two, Rank::Resume, 1000, kStart, &retry));
  budget.leave(two);
  CHECK(budget.ask(one, Rank::Leave, 1000, kStart + nanoseconds(1000), &retry));
  CHECK(budget.join() == two);
}

struct Start {
  Time at;
  std::uint64_t bytes;
};

// Lanes of several engines that sleep until told, wake late, and stop now and then.
struct World {
  struct Lane {
    Rank rank = Rank::Eager;
    std::uint64_t bytes = 0;  // of the slice it wants; 0: none
    Time wakes = kStart;
    Time since = kStart;
    std::uint64_t served = 0;
    nanoseconds longest{0};
  };

  static constexpr double kRate = 2e9;
  static constexpr std::uint64_t kSliceMax = 1 << 20;

  std::mt19937_64 random;
  Budget budget{kRate};
  std::vector<Lane> lanes;
  std::vector<Start> starts;
  bool busy;  // everybody always wants more

  World(std::uint64_t seed, std::size_t count, bool always) : random(seed), busy(always) {
    for (std::size_t i = 0; i < count; ++i) {
      lanes.push_back({.rank = static_cast<Rank>(i % 3)});
      CHECK(budget.join() == i);
    }
  }

  void run(nanoseconds time, std::uint64_t late_ns) {
    while (true) {
      const auto next =
          std::min_element(lanes.begin(), lanes.end(),
                           [](const Lane& a, const Lane& b) { return a.wakes < b.wakes; });
      const Time now = next->wakes;
      if (now > kStart + time) return;
      if (next->bytes == 0) {
        next->bytes = 1 + random() % kSliceMax;
        next->since = now;
      }
      Time retry{};
      const auto who = static_cast<std::size_t>(next - lanes.begin());
      if (budget.ask(who, next->rank, next->bytes, now, &retry)) {
        starts.push_back({now, next->bytes});
        next->served += next->bytes;
        next->longest = std::max(next->longest, nanoseconds(now - next->since));
        next->bytes = 0;
        retry = busy ? now : now + microseconds(random() % 3000);
      }
      next->wakes = std::max(retry, now) + nanoseconds(late_ns > 0 ? random() % late_ns : 0);
    }
  }
};

// Every window between two starts holds no more than the rate, the lateness and one slice.
void no_window_holds_more_than_the_rate() {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    World world(seed, 2 + seed % 7, seed % 2 == 0);
    world.run(std::chrono::milliseconds(300),
              seed % 3 == 0 ? 0 : std::uint64_t{200000} << seed % 5);
    const std::vector<Start>& starts = world.starts;
    CHECK(starts.size() > 50);
    for (std::size_t first = 0; first < starts.size(); ++first) {
      double bytes = 0;
      for (std::size_t last = first; last < std::min(first + 400, starts.size()); ++last) {
        bytes += static_cast<double>(starts[last].bytes);
        const std::chrono::duration<double> window =
            starts[last].at - starts[first].at + Budget::kLatenessMax;
        CHECK(bytes <= World::kRate * window.count() + static_cast<double>(World::kSliceMax));
      }
    }
  }
}

void busy_lanes_use_all_of_it_and_none_starves() {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const std::size_t count = 3 + seed;
    World world(100 + seed, count, true);
    constexpr std::chrono::milliseconds kTime{500};
    world.run(kTime, 20000);
    double bytes = 0;
    for (const World::Lane& lane : world.lanes) {
      bytes += static_cast<double>(lane.served);
      // Passed over by kPassesMax others, then behind those of whom the same is true.
      const double slices = Budget::kPassesMax + 2.0 * static_cast<double>(count);
      const double limit_s = slices * World::kSliceMax / World::kRate;
      CHECK(std::chrono::duration<double>(lane.longest).count() < limit_s);
      CHECK(lane.served > 0);
    }
    const double rate = bytes / std::chrono::duration<double>(kTime).count();
    CHECK(rate > 0.99 * World::kRate && rate < 1.01 * World::kRate);
  }
}

void a_rate_that_is_none_is_refused() {
  std::shared_ptr<SharedBudget> shared;
  for (const double rate : {0.0, -1.0, 1.0, 1e300 * 1e300}) {
    CHECK(SharedBudget::create(rate, &shared) == duplexkv::Status::Invalid && shared == nullptr);
  }
  BudgetSeat free(nullptr);
  Time retry{};
  CHECK(free.ask(Rank::Eager, UINT64_MAX, kStart, &retry));
}

// Two engines, four busy lanes, one budget: bytes are right, nobody is faster than all may be.
void engines_share_what_the_node_has() {
  constexpr double kRate = 200e6;
  constexpr std::uint64_t kBytes = 64 << 10;
  duplexkv::EngineConfig config;
  CHECK(SharedBudget::create(kRate, &config.budget) == duplexkv::Status::Ok);
  Rig one(64, 64, kBytes, duplexkv_test::host_backends(), config);
  Rig two(64, 64, kBytes, duplexkv_test::host_backends(), config);
  duplexkv_test::Ids low;
  duplexkv_test::Ids high;
  for (std::int32_t i = 0; i < 32; ++i) {
    low.push_back(i);
    high.push_back(32 + i);
  }
  for (Rig* rig : {&one, &two}) {
    std::fill(rig->device.begin(), rig->device.end(), std::byte{3});
    std::fill(rig->host.begin(), rig->host.end(), std::byte{5});
  }
  const auto begin = std::chrono::steady_clock::now();
  for (Rig* rig : {&one, &two}) {
    CHECK(rig->submit(duplexkv::Direction::D2H, {{low, low}}) == duplexkv::Status::Ok);
    CHECK(rig->submit(duplexkv::Direction::H2D, {{high, high}}) == duplexkv::Status::Ok);
  }
  for (Rig* rig : {&one, &two}) {
    for (const duplexkv_test::Landed& landed : rig->collect(2))
      CHECK(landed.outcome == DKV_DONE);
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  for (Rig* rig : {&one, &two}) {
    CHECK(rig->at(rig->host, 31, kBytes - 1) == std::byte{3});
    CHECK(rig->at(rig->device, 32) == std::byte{5});
  }
  // What starts last need not have crossed: four slices less, and the lateness.
  constexpr double kPayload = 4.0 * 32 * kBytes - 4 * kRate * 1e-3;
  const std::chrono::duration<double> late = Budget::kLatenessMax;
  CHECK(taken.count() > kPayload / kRate - late.count());
}

// A lane that waits for the budget stops at once, and takes nothing with it.
void close_does_not_wait_for_the_budget() {
  duplexkv::EngineConfig config;
  CHECK(SharedBudget::create(1e6, &config.budget) == duplexkv::Status::Ok);
  Rig other(32, 64, 1 << 20, duplexkv_test::host_backends(), config);
  Rig rig(32, 64, 1 << 20, duplexkv_test::host_backends(), config);
  CHECK(other.submit(duplexkv::Direction::D2H, {{{1, 3}, {1, 3}}}) == duplexkv::Status::Ok);
  CHECK(rig.submit(duplexkv::Direction::D2H, {{{1, 3}, {1, 3}}}) == duplexkv::Status::Ok);
  const auto begin = std::chrono::steady_clock::now();
  CHECK(rig.engine->close() == duplexkv::Status::Ok);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(1));  // 4 s to copy it all
  CHECK((rig.poll() == std::vector<duplexkv_test::Landed>{{1, DKV_CANCELLED}}));
}

}  // namespace

int main() {
  RUN(slices_follow_each_other_at_the_rate);
  RUN(a_resume_goes_before_what_waits_longer);
  RUN(a_lane_may_think_again_while_it_waits);
  RUN(who_leaves_waits_no_more);
  RUN(no_window_holds_more_than_the_rate);
  RUN(busy_lanes_use_all_of_it_and_none_starves);
  RUN(a_rate_that_is_none_is_refused);
  RUN(engines_share_what_the_node_has);
  RUN(close_does_not_wait_for_the_budget);
  return 0;
}

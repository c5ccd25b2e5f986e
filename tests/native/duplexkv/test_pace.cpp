// The link's bandwidth, to the nanosecond: time is an argument.
#include "../check.hpp"
#include "pace.hpp"

namespace {

using duplexkv::Pace;
using duplexkv::SteadyClock;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

const SteadyClock::time_point kStart = SteadyClock::time_point{} + std::chrono::hours(1);

void slices_follow_each_other_at_the_rate() {
  Pace pace(1e9);
  CHECK(pace.reserve(1000, kStart) == kStart + nanoseconds(1000));
  CHECK(pace.reserve(500, kStart) == kStart + nanoseconds(1500));  // asked early: behind the first
}

void a_late_lane_catches_up_but_not_for_ever() {
  Pace pace(1e9);
  CHECK(pace.reserve(1000, kStart) == kStart + nanoseconds(1000));
  // Ready at 1,000 ns, woken at 51,000 ns: the link would have gone on at 1,000.
  CHECK(pace.reserve(1000, kStart + nanoseconds(51000)) == kStart + nanoseconds(2000));
  const SteadyClock::time_point late = kStart + milliseconds(500);
  CHECK(pace.reserve(1000, late) == late - milliseconds(10) + nanoseconds(1000));
}

void an_idle_lane_has_no_credit() {
  Pace pace(1e9);
  CHECK(pace.reserve(1000, kStart) == kStart + nanoseconds(1000));
  pace.idle();
  CHECK(pace.reserve(1000, kStart + nanoseconds(5000)) == kStart + nanoseconds(6000));
  pace.idle();  // and no shortcut through what still crosses
  CHECK(pace.reserve(1000, kStart + nanoseconds(5500)) == kStart + nanoseconds(7000));
}

void without_a_rate_nothing_waits() {
  Pace pace(0);
  CHECK(pace.reserve(UINT64_MAX, kStart) == kStart);
}

// However late the lane wakes each time (within the credit), the rate over many slices is kept.
void the_rate_holds_over_many_late_slices() {
  Pace pace(2e9);
  SteadyClock::time_point now = kStart;
  constexpr int kSlices = 5000;
  for (int slice = 0; slice < kSlices; ++slice) {
    const SteadyClock::time_point crossed = pace.reserve(2000000, now);
    now = std::max(now, crossed) + std::chrono::microseconds(slice * 7919 % 900);
  }
  const double seconds = std::chrono::duration<double>(now - kStart).count();
  const double rate = kSlices * 2e6 / seconds;
  CHECK(rate > 2e9 * 0.999 && rate < 2e9 * 1.001);
}

}  // namespace

int main() {
  RUN(slices_follow_each_other_at_the_rate);
  RUN(a_late_lane_catches_up_but_not_for_ever);
  RUN(an_idle_lane_has_no_credit);
  RUN(without_a_rate_nothing_waits);
  RUN(the_rate_holds_over_many_late_slices);
  return 0;
}

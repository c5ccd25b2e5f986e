// Every rule of what must happen before what, twice: with all in place no byte is wrong, whatever
// the threads, failures and cancels; with any one missing, bytes are.
#include <algorithm>

#include "rotation_trace.hpp"

namespace {

using duplexkv_test::Missing;
using duplexkv_test::RotationTrace;
using duplexkv_test::TraceOptions;
using duplexkv_test::TraceResult;

TraceResult run(const TraceOptions& options) {
  return RotationTrace(options).run();
}

void is_clean(const TraceResult& result) {
  CHECK(result.created && result.bad() == 0);
}

void nothing_is_wrong(TraceOptions options) {
  options.turns = 250;
  TraceResult sum;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    options.seed = seed;
    const TraceResult result = run(options);
    is_clean(result);
    CHECK(result.failed == 0);
    sum.looks += result.looks;
    sum.rotations += result.rotations;
    sum.cancelled += result.cancelled;
    sum.refused += result.refused;
    sum.early_uses += result.early_uses;
  }
  std::fprintf(stderr, "  %d rotations, %d cancelled, %d refused, %d used early\n", sum.rotations,
               sum.cancelled, sum.refused, sum.early_uses);
  CHECK(sum.looks > 1000 && sum.rotations > 60 && sum.cancelled > 20 && sum.refused > 20);
  CHECK((sum.early_uses > 20) == options.streams);
}

void traces_on_the_host_are_as_in_sequence() {
  for (const unsigned threads : {1U, 2U, 3U})
    nothing_is_wrong({.streams = false, .host_threads = threads});
}

void traces_on_a_gpu_are_as_in_sequence() {
  nothing_is_wrong({});
}

void traces_over_blocks_in_parts_are_as_in_sequence() {
  for (const bool streams : {false, true})
    nothing_is_wrong({.streams = streams, .halves = true});
}

void a_failing_call_loses_nothing() {
  int failed = 0;
  int not_created = 0;
  for (std::uint64_t call = 1; call <= 90; ++call) {
    const TraceResult result = run({.seed = call, .turns = 20, .fail_call = call});
    CHECK(result.bad() == 0);
    failed += result.failed;
    not_created += result.created ? 0 : 1;
  }
  std::fprintf(stderr, "  %d groups failed, %d engines not made\n", failed, not_created);
  CHECK(failed > 3 && not_created == 3);  // two lanes and the trace's own stream
}

void a_lost_gpu_tells_every_ticket_and_keeps_valid_slots() {
  int failed = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const auto turn = static_cast<std::int64_t>(10 + seed * 6);
    const TraceResult result = run({.seed = seed, .lose_turn = turn});
    is_clean(result);
    failed += result.failed;
  }
  CHECK(failed > 5);
}

void a_poisoned_lane_loses_nothing_and_the_other_goes_on() {
  int failed = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const TraceResult result =
        run({.seed = seed, .turns = 80, .streams = seed % 2 == 0, .poison_turn = 40});
    is_clean(result);
    failed += result.failed;
  }
  CHECK(failed > 0);
}

// Runs traces without the rule until one shows it.
TraceResult without(Missing missing) {
  TraceResult result;
  for (std::uint64_t seed = 1; seed <= 20 && result.bad() == 0; ++seed)
    result = run({.seed = seed, .turns = 200, .missing = missing});
  return result;
}

void every_missing_rule_is_caught() {
  constexpr struct {
    Missing missing;
    const char* name;
  } kRules[] = {
      {Missing::EagerAfterCompute, "2: eager copy out behind compute"},
      {Missing::OrderInStream, "2, 5: copies out read in stream order"},
      {Missing::TailAfterCompute, "5: tail behind compute"},
      {Missing::CopyInAfterCompute, "8: copy in behind the last user's compute"},
      {Missing::CopyInAfterCopyOut, "8: copy in behind the copy out of the block"},
      {Missing::SlotValid, "8: copy in from a valid slot"},
      {Missing::FirstRead, "9: first read behind the copy in"},
      {Missing::FirstAppend, "10: first append behind the copy in"},
      {Missing::SlotRead, "11: slot filled again behind its read"},
      {Missing::OneWriter, "12: one writer of a slot"},
      {Missing::CancelWaits, "15: cancelled in the air, kept until it has ended"},
  };
  bool all = true;
  for (const auto& rule : kRules) {
    const TraceResult result = without(rule.missing);
    std::fprintf(stderr, "  without %-52s bad: %3d reads, %3d eager, %3d tails of %d looks\n",
                 rule.name, result.bad_reads, result.bad_eager, result.bad_tails, result.looks);
    all = all && result.bad() > 0;
    if (rule.missing == Missing::EagerAfterCompute) all = all && result.bad_eager > 0;
    if (rule.missing == Missing::TailAfterCompute) all = all && result.bad_tails > 0;
  }
  CHECK(all);
}

}  // namespace

int main() {
  RUN(traces_on_the_host_are_as_in_sequence);
  RUN(traces_on_a_gpu_are_as_in_sequence);
  RUN(traces_over_blocks_in_parts_are_as_in_sequence);
  RUN(a_failing_call_loses_nothing);
  RUN(a_lost_gpu_tells_every_ticket_and_keeps_valid_slots);
  RUN(a_poisoned_lane_loses_nothing_and_the_other_goes_on);
  RUN(every_missing_rule_is_caught);
  return 0;
}

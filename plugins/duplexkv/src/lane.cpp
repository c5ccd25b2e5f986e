#include "lane.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <exception>

namespace duplexkv {
namespace {

constexpr std::chrono::microseconds kQueryPeriod{50};

void add(std::atomic<std::uint64_t>& counter, std::uint64_t value) noexcept {
  counter.fetch_add(value, std::memory_order_relaxed);
}

// Signals stay with the threads of the program: none is delivered to a lane.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

Lane::Lane(const LaneConfig& config, std::unique_ptr<Backend> backend,
           const std::atomic<std::int64_t>* marked, Bell* landing)
    : ring_(config.queue_groups_max),
      merge_(config.source, config.target, config.block_bytes, config.slice),
      pace_(config.bytes_per_s),
      slice_limits_(config.slice),
      backend_(std::move(backend)),
      marked_(marked),
      landing_(landing) {
  const SignalsBlocked guard;
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), config.thread_name);
}

Lane::~Lane() {
  stop();
}

void Lane::poison() noexcept {
  poisoned_.store(true, std::memory_order_release);
  doorbell_.ring();
}

void Lane::stop() noexcept {
  if (!thread_.joinable()) return;
  stopping_.store(true, std::memory_order_release);
  doorbell_.ring();
  thread_.join();
}

void Lane::run() noexcept {
  while (!stopping_.load(std::memory_order_acquire)) {
    try {
      turn();
    } catch (const std::exception&) {
      // Memory for a plan ran out. What is in the air ends first, then all fails.
      poisoned_.store(true, std::memory_order_release);
    }
  }
  backend_->drain();
  land_all(Outcome::Cancelled);
}

void Lane::turn() {
  if (poisoned()) {
    backend_->drain();
    land_all(Outcome::Failed);
    asleep_.store(true, std::memory_order_seq_cst);
    doorbell_.wait([this] {
      return stopping_.load(std::memory_order_acquire) || ring_.submitted() != ring_.landed();
    });
    asleep_.store(false, std::memory_order_relaxed);
    return;
  }
  const bool ended = retire();
  const bool fed = feed();
  if (!ended && !fed) rest();
}

bool Lane::interrupted() const noexcept {
  return stopping_.load(std::memory_order_acquire) || poisoned();
}

bool Lane::head_ready() noexcept {
  return taken_ != ring_.submitted() &&
         ring_.at(taken_).after <= marked_->load(std::memory_order_seq_cst);
}

// Sleeps until there is something to do: never spins, never misses a ring.
void Lane::rest() {
  if (flights_.empty()) {
    pace_.idle();
    asleep_.store(true, std::memory_order_seq_cst);
    doorbell_.wait([this] { return interrupted() || head_ready(); });
    asleep_.store(false, std::memory_order_relaxed);
  } else if (flights_.front().progress == Progress::Pending) {
    doorbell_.wait_until(SteadyClock::now() + kQueryPeriod, [this] { return interrupted(); });
  } else {
    doorbell_.wait_until(flights_.front().crossed_at, [this] { return interrupted(); });
  }
}

// Ends the oldest slice if it has arrived. Returns whether anything changed.
bool Lane::retire() {
  if (flights_.empty()) return false;
  Flight& flight = flights_.front();
  if (flight.progress == Progress::Pending) flight.progress = backend_->query(flight.sequence);
  if (flight.progress == Progress::Pending) return false;
  if (flight.progress == Progress::Lost) {
    poisoned_.store(true, std::memory_order_release);
    return true;
  }
  if (SteadyClock::now() < flight.crossed_at) return false;
  end_slice(flight);
  flights_.pop_front();
  return true;
}

void Lane::end_slice(const Flight& flight) {
  Batch* batch = flight.batch;
  if (flight.progress == Progress::Failed) {
    fail_slice(batch, flight.slice);
  } else {
    add(stats_.bytes, batch->plan.slice_bytes[flight.slice]);
    add(stats_.slices, 1);
    add(stats_.descriptors,
        batch->plan.slice_end[flight.slice] - batch->plan.slice_begin(flight.slice));
  }
  const auto now = SteadyClock::now();
  const auto busy = now - std::max(flight.started, slice_ended_at_);  // slices may overlap
  slice_ended_at_ = now;
  add(stats_.busy_ns, static_cast<std::uint64_t>(
                          std::chrono::duration_cast<std::chrono::nanoseconds>(busy).count()));
  ++batch->slices_ended;
  land_groups(batch, flight.slice);
}

// Every group with a descriptor in the slice fails; those before it have landed.
void Lane::fail_slice(Batch* batch, std::size_t slice) {
  const TransferPlan& plan = batch->plan;
  for (std::size_t group = batch->groups_landed; group < plan.group_end.size(); ++group) {
    const std::size_t begin = group == 0 ? 0 : plan.group_end[group - 1];
    if (begin >= plan.slice_end[slice]) break;
    ring_.at(batch->first_group + group).outcome = Outcome::Failed;
  }
}

// Publishes the groups whose last descriptor is in `slice`.
void Lane::land_groups(Batch* batch, std::size_t slice) {
  const TransferPlan& plan = batch->plan;
  std::size_t landed = batch->groups_landed;
  while (landed < plan.group_end.size() && plan.group_end[landed] <= plan.slice_end[slice]) {
    const Group& group = ring_.at(batch->first_group + landed);
    add(stats_.groups[static_cast<std::size_t>(group.outcome)], 1);
    ++landed;
  }
  if (landed == batch->groups_landed) return;
  batch->groups_landed = landed;
  ring_.publish_landed(batch->first_group + landed);
  landing_->ring();
}

// Starts the next slice if the backend has room. Returns whether it did.
bool Lane::feed() {
  if (flights_.size() >= backend_->depth()) return false;
  Batch* batch = &batches_[feeding_];
  if (batch->slices_fed == batch->plan.slice_end.size()) {
    if (!form_batch()) return false;
    batch = &batches_[feeding_];
  }
  const TransferPlan& plan = batch->plan;
  const std::size_t slice = batch->slices_fed++;
  const std::size_t begin = plan.slice_begin(slice);
  const std::size_t count = plan.slice_end[slice] - begin;
  Flight flight{.batch = batch,
                .slice = slice,
                .sequence = ++slice_sequence_,
                .started = SteadyClock::now(),
                .crossed_at = {}};
  flight.crossed_at = pace_.reserve(plan.slice_bytes[slice], flight.started);
  flight.progress = backend_->submit(Slice{std::span(plan.source).subspan(begin, count),
                                           std::span(plan.target).subspan(begin, count),
                                           std::span(plan.bytes).subspan(begin, count)},
                                     flight.sequence);
  flights_.push_back(flight);
  return true;
}

// Plans the ready groups at the head of the queue, about one slice of bytes of them, into the batch
// that has no slice in the air.
bool Lane::form_batch() {
  Batch& next = batches_[1 - feeding_];
  if (next.slices_ended != next.plan.slice_end.size() || !head_ready()) return false;
  next.plan.clear();
  next.first_group = taken_;
  next.slices_fed = next.slices_ended = next.groups_landed = 0;
  std::uint64_t bytes = 0;
  while (bytes < slice_limits_.bytes && head_ready()) {
    const Group& group = ring_.at(taken_);
    merge_.append(group.source, group.target, &next.plan);
    bytes += group.bytes;
    ++taken_;
  }
  feeding_ = 1 - feeding_;
  return true;
}

// Ends everything that has not landed. The backend touches no memory any more.
void Lane::land_all(Outcome outcome) noexcept {
  flights_.clear();
  for (Batch& batch : batches_) {
    batch.plan.clear();
    batch.slices_fed = batch.slices_ended = batch.groups_landed = 0;
  }
  const std::uint64_t submitted = ring_.submitted();
  for (std::uint64_t sequence = ring_.landed(); sequence < submitted; ++sequence) {
    Group& group = ring_.at(sequence);
    if (group.outcome == Outcome::Done) group.outcome = outcome;
    add(stats_.groups[static_cast<std::size_t>(group.outcome)], 1);
  }
  taken_ = submitted;
  ring_.publish_landed(submitted);
  landing_->ring();
}

}  // namespace duplexkv

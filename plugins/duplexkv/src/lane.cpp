#include "lane.hpp"

#include <pthread.h>

#include <algorithm>
#include <exception>

#include "quiet.hpp"

namespace duplexkv {
namespace {

constexpr std::chrono::microseconds kQueryPeriod{50};
constexpr std::chrono::microseconds kTurnQueryPeriod{200};  // a batch takes milliseconds

void add(std::atomic<std::uint64_t>& counter, std::uint64_t value) noexcept {
  counter.fetch_add(value, std::memory_order_relaxed);
}

}  // namespace

Lane::Lane(const LaneConfig& config, std::unique_ptr<Backend> backend, Turns* turns, Bell* landing)
    : queues_{Queue(Urgency::Urgent, config.queue_groups_max),
              Queue(Urgency::Eager, config.queue_groups_max)},
      merge_(config.source, config.target, config.slice),
      pace_(config.bytes_per_s),
      budget_(config.budget),
      ranks_(config.ranks),
      slice_limits_(config.slice),
      backend_(std::move(backend)),
      turns_(turns),
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
      return stopping_.load(std::memory_order_acquire) ||
             std::any_of(queues_.begin(), queues_.end(), [](const Queue& queue) {
               return queue.ring.submitted() != queue.ring.landed();
             });
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

bool Lane::head_ready(Queue* queue) noexcept {
  if (queue->taken == queue->ring.submitted()) return false;
  const Group& head = queue->ring.at(queue->taken);
  if (head.cancelled()) return true;
  return queue->urgency == Urgency::Eager ? turns_->ended_or_lost(head.after)
                                          : turns_->ordered(head.after);
}

bool Lane::any_head_ready() noexcept {
  return std::any_of(queues_.begin(), queues_.end(),
                     [this](Queue& queue) { return head_ready(&queue); });
}

// The head of the eager queue waits for an event that the lane has to ask for.
bool Lane::eager_turn_runs() noexcept {
  Queue& queue = queues_[static_cast<std::size_t>(Urgency::Eager)];
  if (queue.taken == queue.ring.submitted()) return false;
  const std::int64_t after = queue.ring.at(queue.taken).after;
  return turns_->ordered(after) && !turns_->ended(after);
}

// The turn that the backend has to wait for before it touches the group's blocks; -1: none.
std::int64_t Lane::behind_turn(const Group& group) const noexcept {
  return turns_->ended(group.after) ? -1 : group.after;
}

// Sleeps until there is something to do: never spins, never misses a ring.
void Lane::rest() {
  if (flights_.empty() && unpaid_ != nullptr) {
    rest_until_budget();
  } else if (flights_.empty()) {
    pace_.idle();
    asleep_.store(true, std::memory_order_seq_cst);
    doorbell_.wait([this] { return interrupted() || any_head_ready() || eager_turn_runs(); });
    if (eager_turn_runs()) {
      doorbell_.wait_until(SteadyClock::now() + kTurnQueryPeriod,
                           [this] { return interrupted() || any_head_ready(); });
    }
    asleep_.store(false, std::memory_order_relaxed);
  } else if (flights_.front().progress == Progress::Pending) {
    doorbell_.wait_until(SteadyClock::now() + kQueryPeriod, [this] { return interrupted(); });
  } else {
    doorbell_.wait_until(flights_.front().crossed_at, [this] { return interrupted(); });
  }
}

// What is urgent asks for itself as soon as it is ready.
void Lane::rest_until_budget() {
  Queue& urgent = queues_[static_cast<std::size_t>(Urgency::Urgent)];
  asleep_.store(true, std::memory_order_seq_cst);
  doorbell_.wait_until(
      budget_at_, [&] { return interrupted() || (unpaid_ != &urgent && head_ready(&urgent)); });
  asleep_.store(false, std::memory_order_relaxed);
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
    fail_slice(flight);
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
  land_groups(flight.queue, batch, batch->plan.slice_end[flight.slice]);
}

// Every group with a descriptor in the slice fails; those before it have landed.
void Lane::fail_slice(const Flight& flight) {
  const Batch& batch = *flight.batch;
  const TransferPlan& plan = batch.plan;
  for (std::size_t group = batch.groups_landed; group < plan.group_end.size(); ++group) {
    if (batch.group_begin(group) >= plan.slice_end[flight.slice]) break;
    flight.queue->ring.at(batch.first_group + group).outcome = Outcome::Failed;
  }
}

// Publishes the groups of the batch that have no descriptor past the first `descriptors_ended`.
void Lane::land_groups(Queue* queue, Batch* batch, std::size_t descriptors_ended) {
  const TransferPlan& plan = batch->plan;
  std::size_t landed = batch->groups_landed;
  while (landed < plan.group_end.size() && plan.group_end[landed] <= descriptors_ended) {
    Group& group = queue->ring.at(batch->first_group + landed);
    if (group.cancelled()) group.outcome = Outcome::Cancelled;
    add(stats_.groups[static_cast<std::size_t>(group.outcome)], 1);
    ++landed;
  }
  if (landed == batch->groups_landed) return;
  batch->groups_landed = landed;
  queue->ring.publish_landed(batch->first_group + landed);
  landing_->ring();
}

// Starts the next slice if the backend has room. Returns whether anything changed.
bool Lane::feed() {
  if (flights_.size() >= backend_->depth()) return false;
  unpaid_ = nullptr;
  return std::any_of(queues_.begin(), queues_.end(),
                     [this](Queue& queue) { return unpaid_ == nullptr && feed_slice(&queue); });
}

bool Lane::in_budget(const Queue& queue, std::uint64_t bytes) noexcept {
  const Rank rank = ranks_[static_cast<std::size_t>(queue.urgency)];
  if (budget_.ask(rank, bytes, SteadyClock::now(), &budget_at_)) return true;
  unpaid_ = &queue;
  return false;
}

bool Lane::feed_slice(Queue* queue) {
  if (queue->feeding().fed() && !form_batch(queue)) return false;
  Batch& batch = queue->feeding();
  if (batch.fed()) return true;  // of cancelled groups only
  const bool abandoned = slice_abandoned(queue, batch, batch.slices_fed);
  if (!abandoned && !in_budget(*queue, batch.plan.slice_bytes[batch.slices_fed])) return false;
  Flight flight{.queue = queue,
                .batch = &batch,
                .slice = batch.slices_fed++,
                .sequence = 0,
                .started = SteadyClock::now(),
                .crossed_at = {}};
  if (abandoned) {
    flight.progress = Progress::Failed;
  } else {
    flight.sequence = ++slice_sequence_;
    flight.crossed_at = pace_.reserve(batch.plan.slice_bytes[flight.slice], flight.started);
    flight.progress = start_slice(batch, flight.slice, flight.sequence);
  }
  stamp_groups(flight);
  flights_.push_back(flight);
  return true;
}

Progress Lane::start_slice(const Batch& batch, std::size_t slice, std::uint64_t sequence) {
  if (batch.behind_turn >= 0) {
    const Progress ordered = backend_->order_behind(batch.behind_turn);
    if (ordered != Progress::Done) return ordered;
  }
  const TransferPlan& plan = batch.plan;
  const std::size_t begin = plan.slice_begin(slice);
  const std::size_t count = plan.slice_end[slice] - begin;
  return backend_->submit(Slice{std::span(plan.source).subspan(begin, count),
                                std::span(plan.target).subspan(begin, count),
                                std::span(plan.bytes).subspan(begin, count)},
                          sequence);
}

// Nobody wants what the slice would bring.
bool Lane::slice_abandoned(Queue* queue, const Batch& batch, std::size_t slice) {
  const TransferPlan& plan = batch.plan;
  for (std::size_t group = batch.groups_fed; group < plan.group_end.size(); ++group) {
    if (batch.group_begin(group) >= plan.slice_end[slice]) break;
    if (!queue->ring.at(batch.first_group + group).cancelled()) return false;
  }
  return true;
}

// Tells the front in which slice a group ends, for streams that are to wait for it.
void Lane::stamp_groups(const Flight& flight) {
  Batch& batch = *flight.batch;
  const TransferPlan& plan = batch.plan;
  const bool arrives = flight.progress == Progress::Done || flight.progress == Progress::Pending;
  for (std::size_t index = batch.groups_fed; index < plan.group_end.size(); ++index) {
    if (batch.group_begin(index) >= plan.slice_end[flight.slice]) break;
    Group& group = flight.queue->ring.at(batch.first_group + index);
    const bool ends = plan.group_end[index] <= plan.slice_end[flight.slice];
    if (!arrives) {
      group.stamp.store(Group::kNever, std::memory_order_release);
    } else if (ends && group.stamp.load(std::memory_order_relaxed) != Group::kNever) {
      group.stamp.store(flight.sequence, std::memory_order_release);
    }
    if (ends) ++batch.groups_fed;
  }
}

void Lane::Batch::start(std::uint64_t group) noexcept {
  plan.clear();
  first_group = group;
  behind_turn = -1;
  slices_fed = slices_ended = groups_fed = groups_landed = 0;
}

// Plans the ready groups at the head of the queue, about one slice of bytes of them, into the batch
// that has no slice in the air. Groups that the GPU must order behind different turns stay apart.
bool Lane::form_batch(Queue* queue) {
  Batch& next = queue->other();
  if (!next.ended() || !head_ready(queue)) return false;
  next.start(queue->taken);
  std::uint64_t bytes = 0;
  while (bytes < slice_limits_.bytes && head_ready(queue)) {
    const Group& group = queue->ring.at(queue->taken);
    const std::int64_t turn = group.cancelled() ? -1 : behind_turn(group);
    if (next.plan.source.empty()) {
      next.behind_turn = turn;
    } else if (turn > next.behind_turn) {
      break;
    }
    plan_group(queue, &next);
    bytes += group.bytes;
  }
  if (next.fed()) {
    // Nothing to copy: it lands behind what is in the air, or goes with the next live group.
    if (!queue->feeding().ended()) {
      queue->taken = next.first_group;
      next.start(queue->taken);
      return false;
    }
    land_groups(queue, &next, 0);
  }
  queue->feeding_index = 1 - queue->feeding_index;
  return true;
}

// A group that the front cancelled first takes its place in the order, but no descriptor.
void Lane::plan_group(Queue* queue, Batch* batch) {
  Group& group = queue->ring.at(queue->taken);
  if (group.leave_queue(Hold::Planned)) {
    merge_.append(group.source, group.target, &batch->plan);
  } else {
    batch->plan.group_end.push_back(batch->plan.source.size());
  }
  ++queue->taken;
}

// Ends everything that has not landed. The backend touches no memory any more.
void Lane::land_all(Outcome outcome) noexcept {
  flights_.clear();
  for (Queue& queue : queues_) {
    const std::uint64_t submitted = queue.ring.submitted();
    for (Batch& batch : queue.batches)
      batch.start(submitted);
    for (std::uint64_t sequence = queue.ring.landed(); sequence < submitted; ++sequence) {
      Group& group = queue.ring.at(sequence);
      if (group.outcome == Outcome::Done) group.outcome = outcome;
      if (group.cancelled()) group.outcome = Outcome::Cancelled;
      group.stamp.store(Group::kNever, std::memory_order_release);
      add(stats_.groups[static_cast<std::size_t>(group.outcome)], 1);
    }
    queue.taken = submitted;
    queue.ring.publish_landed(submitted);
  }
  landing_->ring();
}

}  // namespace duplexkv

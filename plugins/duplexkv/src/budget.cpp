#include "budget.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace duplexkv {

std::size_t Budget::join() {
  const auto absent = std::find_if(askers_.begin(), askers_.end(),
                                   [](const Asker& asker) { return asker.state == State::Absent; });
  const auto who = static_cast<std::size_t>(absent - askers_.begin());
  if (absent == askers_.end()) askers_.emplace_back();
  askers_[who].state = State::Idle;
  return who;
}

bool Budget::ask(std::size_t who, Rank rank, std::uint64_t bytes, Time now,
                 Time* retry_at) noexcept {
  Asker& asker = askers_[who];
  if (asker.state == State::Granted && (bytes > asker.bytes || now - asker.start > kLatenessMax)) {
    asker.state = State::Waiting;  // its time is lost, not its place
  }
  if (asker.state == State::Idle) {
    asker.state = State::Waiting;
    asker.since = now;
    asker.passes = 0;
  }
  if (asker.state == State::Waiting) {
    asker.rank = rank;
    asker.bytes = bytes;
    grant_until(now);
  }
  if (asker.state != State::Granted) {
    *retry_at = free_at_;
    return false;
  }
  asker.state = State::Idle;
  return true;
}

// All grants that begin by `now`.
void Budget::grant_until(Time now) noexcept {
  for (Time start = next_start(now); start <= now; start = next_start(now)) {
    Asker* next = nullptr;
    for (Asker& asker : askers_) {
      if (asker.state != State::Waiting || asker.since > start) continue;
      ++asker.passes;
      if (next == nullptr || before(asker, *next)) next = &asker;
    }
    next->state = State::Granted;
    next->start = start;
    next->passes = 0;
    free_at_ = start + std::chrono::nanoseconds(static_cast<std::int64_t>(
                           std::ceil(static_cast<double>(next->bytes) / bytes_per_s_ * 1e9)));
  }
}

// When the next grant begins: what was granted has crossed, somebody waits, and not too long ago.
Budget::Time Budget::next_start(Time now) const noexcept {
  Time first = Time::max();
  for (const Asker& asker : askers_) {
    if (asker.state == State::Waiting) first = std::min(first, asker.since);
  }
  return first == Time::max() ? first : std::max({free_at_, first, now - kLatenessMax});
}

bool Budget::before(const Asker& a, const Asker& b) noexcept {
  const bool a_patient = a.passes <= kPassesMax;
  const bool b_patient = b.passes <= kPassesMax;
  if (a_patient != b_patient) return b_patient;
  if (!a_patient) return a.since < b.since;
  return std::tie(a.rank, a.since) < std::tie(b.rank, b.since);
}

Status SharedBudget::create(double bytes_per_s, std::shared_ptr<SharedBudget>* out) {
  if (!std::isfinite(bytes_per_s) || bytes_per_s < 1e6) {
    return fail(Status::Invalid, "budget: bytes_per_s %g is not a rate >= 1e6", bytes_per_s);
  }
  *out = std::make_shared<SharedBudget>(bytes_per_s);
  return Status::Ok;
}

BudgetSeat::BudgetSeat(std::shared_ptr<SharedBudget> shared) : shared_(std::move(shared)) {
  if (shared_ == nullptr) return;
  const std::lock_guard lock(shared_->mutex_);
  who_ = shared_->budget_.join();
}

BudgetSeat::~BudgetSeat() {
  if (shared_ == nullptr) return;
  const std::lock_guard lock(shared_->mutex_);
  shared_->budget_.leave(who_);
}

bool BudgetSeat::ask(Rank rank, std::uint64_t bytes, Budget::Time now,
                     Budget::Time* retry_at) noexcept {
  if (shared_ == nullptr) return true;
  const std::lock_guard lock(shared_->mutex_);
  return shared_->budget_.ask(who_, rank, bytes, now, retry_at);
}

}  // namespace duplexkv

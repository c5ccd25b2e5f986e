#include "team.h"

#include <stdexcept>
#include <utility>

namespace superinfer::cpu {
namespace {

constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when `value` is no longer `old`.
void await_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old)
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int threads) : threads_count_(threads) {
  if (threads < 1 || threads > 256) throw std::invalid_argument("threads: must be in 1..256");
  members_.reserve(static_cast<std::size_t>(threads));
  try {
    for (int i = 0; i < threads; ++i)
      members_.emplace_back([this, i] { loop(i); });
  } catch (...) {
    quit_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& member : members_)
      member.join();
    throw;
  }
}

Team::~Team() {
  quit_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& member : members_)
    member.join();
}

void Team::start(std::function<void(int)> job, std::size_t stages) {
  const std::size_t needed = stages * static_cast<std::size_t>(threads_count_);
  if (needed > counters_count_) {
    counters_ = std::make_unique<Counter[]>(needed);
    counters_count_ = needed;
  }
  for (std::size_t i = 0; i < needed; ++i)
    counters_[i].value.store(0, std::memory_order_relaxed);
  job_ = std::move(job);
  ended_.store(0, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
}

void Team::wait() {
  const auto all = static_cast<std::uint32_t>(threads_count_);
  for (;;) {
    const std::uint32_t ended = ended_.load(std::memory_order_acquire);
    if (ended == all) return;
    ended_.wait(ended, std::memory_order_acquire);
  }
}

void Team::sync() {
  if (threads_count_ == 1) return;
  const std::uint32_t before = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<std::uint32_t>(threads_count_)) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.fetch_add(1, std::memory_order_release);
    passed_.notify_all();
  } else {
    await_change(passed_, before);
  }
}

void Team::loop(int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    await_change(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (quit_) return;
    job_(thread);
    ended_.fetch_add(1, std::memory_order_release);
    ended_.notify_all();
  }
}

}  // namespace superinfer::cpu

#include "virtual_gpu.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "../check.hpp"

namespace duplexkv_test {

struct VirtualGpu::VirtualEvent {
  // Shared with operations in the queues: a destroyed event's record may still be ahead.
  struct State {
    std::uint64_t recorded = 0;
    std::uint64_t done = 0;
    Stream stream = 0;
  };
  std::shared_ptr<State> state = std::make_shared<State>();
};

struct VirtualGpu::Operation {
  std::function<void()> work;                    // runs without the lock, if any
  std::shared_ptr<VirtualEvent::State> signals;  // then
  std::shared_ptr<VirtualEvent::State> awaits;   // not before
  std::uint64_t value = 0;                       // of the event
};

struct VirtualGpu::Graph {
  struct Node {
    std::function<void()> work;
    std::shared_ptr<VirtualEvent::State> awaits;
  };
  std::vector<Node> nodes;
};

struct VirtualGpu::VirtualStream {
  std::deque<Operation> queue;      // the front one stays until it has run
  std::vector<Operation> pending;   // waits that the next work takes along
  std::shared_ptr<Graph> captured;  // while capturing
  bool stopping = false;
  bool busy = false;
  std::mt19937_64 random;   // the thread's, with the next two
  int mood_operations = 0;  // left
  int slowness = 1;
  std::mt19937_64 early_random;  // under the lock
  std::thread thread;
};

namespace {

template <typename Object, typename Handle>
Object* object_of(Handle handle) {
  return reinterpret_cast<Object*>(handle);
}

using Words = std::vector<std::uint64_t>;

Words read_words(std::uintptr_t source, std::size_t bytes) {
  Words words(bytes / sizeof(std::uint64_t));
  const auto* from = reinterpret_cast<const std::uint64_t*>(source);
  for (std::size_t i = 0; i < words.size(); ++i)
    words[i] = load_word(from + i);
  return words;
}

void write_words(std::uintptr_t target, const Words& words) {
  auto* to = reinterpret_cast<std::uint64_t*>(target);
  for (std::size_t i = 0; i < words.size(); ++i)
    store_word(to + i, words[i]);
}

}  // namespace

VirtualGpu::~VirtualGpu() {
  CHECK(streams_.empty() && events_.empty());
}

bool VirtualGpu::call_fails() noexcept {
  return ++calls_ == options_.fail_call;
}

GpuStatus VirtualGpu::create_stream(Stream* out) noexcept {
  if (call_fails()) return GpuStatus::Failed;
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  auto* stream = new VirtualStream;
  stream->random.seed(options_.seed * 1000 + streams_.size());
  stream->early_random.seed(options_.seed * 1000 + streams_.size() + 500);
  streams_.insert(stream);
  stream->thread = std::thread([this, stream] { serve(stream); });
  *out = reinterpret_cast<Stream>(stream);
  return GpuStatus::Ok;
}

void VirtualGpu::destroy_stream(Stream handle) noexcept {
  auto* stream = object_of<VirtualStream>(handle);
  {
    const std::lock_guard lock(mutex_);
    CHECK(streams_.contains(stream));
    stream->stopping = true;
  }
  changed_.notify_all();
  stream->thread.join();
  const std::lock_guard lock(mutex_);
  streams_.erase(stream);
  delete stream;
}

GpuStatus VirtualGpu::create_event(Event* out) noexcept {
  if (call_fails()) return GpuStatus::Failed;
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  auto* event = new VirtualEvent;
  events_.insert(event);
  *out = reinterpret_cast<Event>(event);
  return GpuStatus::Ok;
}

void VirtualGpu::destroy_event(Event handle) noexcept {
  auto* event = object_of<VirtualEvent>(handle);
  const std::lock_guard lock(mutex_);
  CHECK(events_.erase(event) == 1);
  delete event;
}

GpuStatus VirtualGpu::record(Event event, Stream stream) noexcept {
  if (call_fails()) return GpuStatus::Failed;
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  auto& state = object_of<VirtualEvent>(event)->state;
  state->stream = stream;
  push(object_of<VirtualStream>(stream),
       {.work = {}, .signals = state, .awaits = {}, .value = ++state->recorded});
  return GpuStatus::Ok;
}

GpuStatus VirtualGpu::wait(Stream stream, Event event) noexcept {
  if (call_fails()) return GpuStatus::Failed;
  ++waits_;
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  auto* waiter = object_of<VirtualStream>(stream);
  CHECK(waiter->captured == nullptr);
  const auto& state = object_of<VirtualEvent>(event)->state;
  waiter->pending.push_back({.work = {}, .signals = {}, .awaits = state, .value = state->recorded});
  return GpuStatus::Ok;
}

GpuStatus VirtualGpu::wait_external(Stream stream, Event event) noexcept {
  if (call_fails()) return GpuStatus::Failed;
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  auto* waiter = object_of<VirtualStream>(stream);
  CHECK(waiter->captured != nullptr);
  waiter->captured->nodes.push_back({.work = {}, .awaits = object_of<VirtualEvent>(event)->state});
  return GpuStatus::Ok;
}

Progress VirtualGpu::query(Event event) noexcept {
  const std::lock_guard lock(mutex_);
  if (lost_) return Progress::Lost;
  const auto& state = *object_of<VirtualEvent>(event)->state;
  if (options_.seen_early && options_.seen_early(state.stream)) return Progress::Done;
  return state.done >= state.recorded ? Progress::Done : Progress::Pending;
}

GpuStatus VirtualGpu::copy(Stream handle, const Slice& slice, SourceOrder order) noexcept {
  if (call_fails()) return GpuStatus::Failed;
  const std::size_t count = slice.bytes.size();
  const bool any = order == SourceOrder::Any || (options_.reads_any && options_.reads_any(slice));
  auto snapshot = std::make_shared<std::vector<Words>>();
  if (any) {
    ++any_copies_;
    for (std::size_t i = 0; i < count; ++i)
      snapshot->push_back(read_words(slice.source[i], slice.bytes[i]));
  }
  const std::lock_guard lock(mutex_);
  if (lost_) return GpuStatus::Lost;
  auto* stream = object_of<VirtualStream>(handle);
  if (options_.forgets_waits && options_.forgets_waits(slice)) stream->pending.clear();
  // Half of the early reads happen after all: both must be right.
  const bool early = any && stream->early_random() % 2 == 0;
  auto work = [this, stream, slice, snapshot, early] {
    std::vector<std::size_t> order_now(slice.bytes.size());
    std::iota(order_now.begin(), order_now.end(), 0);
    std::shuffle(order_now.begin(), order_now.end(), stream->random);
    for (const std::size_t i : order_now) {
      write_words(slice.target[i],
                  early ? (*snapshot)[i] : read_words(slice.source[i], slice.bytes[i]));
      if (stream->random() % 4 == 0) delay(&stream->random, options_.delay_max / 4);
    }
  };
  push(stream, {.work = std::move(work), .signals = {}, .awaits = {}});
  return GpuStatus::Ok;
}

bool VirtualGpu::capturing(Stream stream) noexcept {
  const std::lock_guard lock(mutex_);
  return object_of<VirtualStream>(stream)->captured != nullptr;
}

void VirtualGpu::drain(Stream handle) noexcept {
  auto* stream = object_of<VirtualStream>(handle);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return (stream->queue.empty() || lost_) && !stream->busy; });
}

void VirtualGpu::run(Stream handle, std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  auto* stream = object_of<VirtualStream>(handle);
  if (stream->captured != nullptr) {
    stream->captured->nodes.push_back({.work = std::move(work), .awaits = {}});
  } else {
    push(stream, {.work = std::move(work), .signals = {}, .awaits = {}});
  }
}

void VirtualGpu::forget_waits(Stream stream) {
  const std::lock_guard lock(mutex_);
  object_of<VirtualStream>(stream)->pending.clear();
}

void VirtualGpu::lose() {
  {
    const std::lock_guard lock(mutex_);
    lost_ = true;
  }
  changed_.notify_all();
}

void VirtualGpu::begin_capture(Stream stream) {
  const std::lock_guard lock(mutex_);
  object_of<VirtualStream>(stream)->captured = std::make_shared<Graph>();
}

std::shared_ptr<VirtualGpu::Graph> VirtualGpu::end_capture(Stream stream) {
  const std::lock_guard lock(mutex_);
  return std::exchange(object_of<VirtualStream>(stream)->captured, nullptr);
}

void VirtualGpu::launch(Stream handle, const std::shared_ptr<Graph>& graph) {
  const std::lock_guard lock(mutex_);
  auto* stream = object_of<VirtualStream>(handle);
  for (const Graph::Node& node : graph->nodes) {
    const std::uint64_t value = node.awaits == nullptr ? 0 : node.awaits->recorded;
    push(stream, {.work = node.work, .signals = {}, .awaits = node.awaits, .value = value});
  }
}

std::size_t VirtualGpu::alive() {
  const std::lock_guard lock(mutex_);
  return streams_.size() + events_.size();
}

// Under the lock.
void VirtualGpu::push(VirtualStream* stream, Operation operation) {
  for (Operation& wait : stream->pending)
    stream->queue.push_back(std::move(wait));
  stream->pending.clear();
  stream->queue.push_back(std::move(operation));
  changed_.notify_all();
}

bool VirtualGpu::runnable(const VirtualStream& stream) {
  if (stream.queue.empty()) return false;
  const Operation& front = stream.queue.front();
  return front.awaits == nullptr || front.awaits->done >= front.value;
}

void VirtualGpu::delay(std::mt19937_64* random, std::chrono::microseconds longest) {
  const std::uint64_t kind = (*random)() % 3;
  if (kind == 0) return;
  if (kind == 1) return std::this_thread::yield();
  const auto limit = static_cast<std::uint64_t>(longest.count()) + 1;
  std::this_thread::sleep_for(std::chrono::microseconds((*random)() % limit));
}

void VirtualGpu::serve(VirtualStream* stream) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stream->stopping || (!lost_ && runnable(*stream)); });
    if (lost_ || !runnable(*stream)) {
      if (stream->stopping && (lost_ || stream->queue.empty())) return;
      changed_.wait(lock);  // stopping, but a wait is ahead
      continue;
    }
    const Operation operation = stream->queue.front();
    stream->busy = true;
    lock.unlock();
    if (operation.awaits == nullptr) {
      // Each stream is the slow one now and then, so that every race is lost by either side.
      if (stream->mood_operations-- == 0) {
        stream->mood_operations = static_cast<int>(4 + stream->random() % 24);
        stream->slowness = stream->random() % 3 == 0 ? 5 : static_cast<int>(stream->random() % 2);
      }
      delay(&stream->random, options_.delay_max * stream->slowness);
    }
    if (operation.work) operation.work();
    lock.lock();
    stream->busy = false;
    stream->queue.pop_front();
    if (operation.signals != nullptr && !lost_) {
      operation.signals->done = std::max(operation.signals->done, operation.value);
    }
    changed_.notify_all();
  }
}

}  // namespace duplexkv_test

#include "cuda_trial.hpp"

#include <cstring>
#include <new>

namespace duplexkv::cuda {
namespace {

using Steady = std::chrono::steady_clock;

// Segments of a measurement lie as far apart as they are long, so that none can be merged.
constexpr std::size_t kBufferBytes = 2 * RouteTable::kTrialBytesMax;

double since(Steady::time_point start) noexcept {
  return std::chrono::duration<double>(Steady::now() - start).count();
}

}  // namespace

Status Trial::create(const Device* device, const Kernels* kernels, std::unique_ptr<Trial>* out) {
  std::unique_ptr<Trial> trial(new Trial(device, kernels));
  const Status status = trial->allocate();
  if (status == Status::Ok) *out = std::move(trial);
  return status;
}

Status Trial::allocate() {
  const Driver& driver = device_->driver();
  Result result = driver.host_alloc(&pinned_, kBufferBytes, kHostPortableMapped);
  if (result != kSuccess) pinned_ = nullptr;
  if (result == kSuccess) {
    result = driver.memory_alloc(&on_device_, kBufferBytes);
    if (result != kSuccess) on_device_ = 0;
  }
  void* stream = nullptr;
  if (result == kSuccess) result = driver.stream_create(&stream, kStreamNonBlocking, 0);
  if (result != kSuccess) {
    return fail(Status::NoMemory, "cuda: no %zu bytes for trial copies: %s", kBufferBytes,
                name_of(driver, result));
  }
  copier_.reset(new (std::nothrow) CopyStream(device_, kernels_, true, HostChunks{}, stream));
  if (copier_ == nullptr) {
    driver.stream_destroy(stream);
    return fail(Status::NoMemory, "out of memory");
  }
  return Status::Ok;
}

Trial::~Trial() {
  const Driver& driver = device_->driver();
  if (copier_ != nullptr) {
    driver.stream_synchronize(copier_->stream);
    driver.stream_destroy(copier_->stream);
  }
  if (on_device_ != 0) driver.memory_free(on_device_);
  if (pinned_ != nullptr) driver.host_free(pinned_);
}

bool Trial::run(Route route, const Slice& slice, SourceOrder order) noexcept {
  return copier_->copy(route, slice, order) == kSuccess &&
         device_->driver().stream_synchronize(copier_->stream) == kSuccess;
}

bool Trial::batch_copies_all() {
  constexpr std::size_t kHalf = std::size_t{1} << 20;  // out of the first, back into the second
  constexpr std::size_t kSegments = 256;
  constexpr std::size_t kStride = kHalf / kSegments;
  auto* bytes = static_cast<unsigned char*>(pinned_);
  std::vector<unsigned char> expected(kHalf, 0xEE);
  std::memset(bytes + kHalf, 0xEE, kHalf);
  for (std::size_t i = 0; i < kHalf; ++i)
    bytes[i] = static_cast<unsigned char>((i * 167 + i / 251) & 0xFF);
  const auto host = reinterpret_cast<std::uintptr_t>(pinned_);
  std::vector<std::uintptr_t> up;
  std::vector<std::uintptr_t> there;
  std::vector<std::uintptr_t> back;
  bytes_.clear();
  for (std::size_t i = 0; i < kSegments; ++i) {
    // To the GPU in one order, back in another, so that no mapping by position goes unseen.
    const std::size_t from = i * kStride + i % 7;
    const std::size_t to = (kSegments - 1 - i) * kStride + i % 5;
    const std::size_t size = 1 + (i * 61) % (kStride - 8);
    up.push_back(host + from);
    there.push_back(on_device_ + to);
    back.push_back(host + kHalf + to);
    bytes_.push_back(size);
    std::memcpy(expected.data() + to, bytes + from, size);
  }
  const bool ran =
      run(Route::CopyEngine, {.source = up, .target = there, .bytes = bytes_}, SourceOrder::Any) &&
      run(Route::CopyEngine, {.source = there, .target = back, .bytes = bytes_},
          SourceOrder::InStream);
  // A batch that failed was copied one by one: that is no trial of batches.
  return ran && copier_->engines.batch() && !copier_->engines.batch_failed() &&
         std::memcmp(expected.data(), bytes + kHalf, kHalf) == 0;
}

void Trial::start_timing(bool batch) {
  copier_->engines = EngineCopies(device_, batch);
  started_ = Steady::now();
}

double Trial::elapsed_s() noexcept {
  return since(started_);
}

double Trial::seconds(Route route, unsigned direction, std::size_t bytes,
                      std::size_t count) noexcept {
  try {
    source_.clear();
    target_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      const std::uintptr_t host = reinterpret_cast<std::uintptr_t>(pinned_) + i * 2 * bytes;
      const std::uintptr_t device = on_device_ + i * 2 * bytes;
      source_.push_back(direction == DKV_D2H ? device : host);
      target_.push_back(direction == DKV_D2H ? host : device);
    }
    bytes_.assign(count, bytes);
  } catch (const std::bad_alloc&) {
    return 0;
  }
  const Slice slice{.source = source_, .target = target_, .bytes = bytes_};
  // From the call to the last byte: a lane pays for both. Once to warm up, once for the record.
  double best = 0;
  for (int round = 0; round < 2; ++round) {
    const auto start = Steady::now();
    if (!run(route, slice, SourceOrder::InStream)) return 0;
    best = since(start);
  }
  return best;
}

}  // namespace duplexkv::cuda

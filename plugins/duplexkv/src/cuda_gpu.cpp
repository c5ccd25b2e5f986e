#include "cuda_gpu.hpp"

#include <algorithm>
#include <new>
#include <numeric>

#include "cuda_trial.hpp"

namespace duplexkv::cuda {
namespace {

// NOLINTBEGIN(performance-no-int-to-ptr): the interface carries handles as integers
void* handle(std::uintptr_t value) noexcept {
  return reinterpret_cast<void*>(value);
}
// NOLINTEND(performance-no-int-to-ptr)

constexpr Stream kLegacyStream = 1;  // beside 0, which is the same

bool legacy(Stream stream) noexcept {
  return stream <= kLegacyStream;
}

GpuStatus refuse_legacy(const char* call) noexcept {
  fail(Status::Invalid, "cuda: %s: the legacy stream waits for every other; use one of its own",
       call);
  return GpuStatus::Failed;
}

// Of the text that names what was measured.
constexpr int kRoutesVersion = 1;

}  // namespace

Result CopyStream::copy(Route route, const Slice& slice, SourceOrder order) noexcept {
  if (route != Route::CopyEngine) {
    bool taken = false;
    const Result result = kernel_copies.copy(route, stream, slice, &taken);
    if (taken || result != kSuccess) return result;
  }
  return engines.copy(stream, slice, order);
}

Status CudaGpu::create(const GpuConfig& config, std::unique_ptr<CudaGpu>* out) {
  std::unique_ptr<Device> device;
  Status status = Device::open(config.driver, config.ordinal, &device);
  if (status != Status::Ok) return status;
  std::unique_ptr<CudaGpu> gpu(new CudaGpu(config, std::move(device)));
  status = gpu->prepare();
  if (status == Status::Ok) *out = std::move(gpu);
  return status;
}

CudaGpu::CudaGpu(const GpuConfig& config, std::unique_ptr<Device> device)
    : config_(config),
      device_(std::move(device)),
      driver_(device_->driver()),
      kernels_(device_.get(), config.kernels, config.sms_max),
      rotations_(device_.get(), &kernels_, config.pools),
      table_(kernels_.routes()) {}

CudaGpu::~CudaGpu() {
  const Current current(*device_);
  for (const auto& one : streams_) {
    driver_.stream_synchronize(one->stream);
    driver_.stream_destroy(one->stream);
  }
  streams_.clear();
}

// Tries the batch call, then measures the ways, or takes what was measured before.
Status CudaGpu::prepare() {
  const Current current(*device_);
  if (current.result() != kSuccess) {
    return fail(Status::NoDevice, "cuda: device %d: %s", config_.ordinal,
                name_of(driver_, current.result()));
  }
  if (config_.route != Route::Auto && !kernels_.routes().has(config_.route)) {
    return fail(Status::Unsupported,
                "cuda_route: %u needs copy kernels for compute capability %d.%d in this build",
                static_cast<unsigned>(config_.route), facts().capability / 10,
                facts().capability % 10);
  }
  rotations_.prepare();
  const bool wanted = config_.batch == DKV_BATCH_ON ||
                      (config_.batch == DKV_BATCH_AUTO && !batch_is_faulty(facts().capability));
  const bool possible = wanted && driver_.memcpy_batch != nullptr;
  const bool measure = config_.route == Route::Auto && config_.calibration_s > 0 &&
                       kernels_.routes().register_kernel;
  if (config_.batch == DKV_BATCH_ON && !possible) {
    return fail(Status::Unsupported, "cuda_batch: the driver has no batched copies (CUDA 12.8)");
  }
  if (!possible && !measure) return Status::Ok;
  std::unique_ptr<Trial> trial;
  const Status status = Trial::create(device_.get(), &kernels_, &trial);
  if (status != Status::Ok) return status;
  batch_ = possible && trial->batch_copies_all();
  if (config_.batch == DKV_BATCH_ON && !batch_) {
    return fail(Status::Unsupported, "cuda_batch: a trial of batched copies lost bytes");
  }
  if (!measure) return Status::Ok;
  const std::string key = routes_key();
  if (config_.routes_file != nullptr) {
    if (const auto known = load_routes(config_.routes_file, key, kernels_.routes())) {
      table_ = *known;
      return Status::Ok;
    }
  }
  trial->start_timing(batch_);
  table_.calibrate(trial.get(), config_.calibration_s);
  // A folder that cannot be written costs the next start its measurement, nothing else.
  if (config_.routes_file != nullptr) save_routes(config_.routes_file, key, table_);
  return Status::Ok;
}

std::string CudaGpu::routes_key() const {
  return facts().uuid + " driver " + std::to_string(facts().driver_version) + " sms " +
         std::to_string(config_.sms_max) + (batch_ ? " batch" : " single") + " v" +
         std::to_string(kRoutesVersion);
}

GpuStatus CudaGpu::told(Result result) noexcept {
  const GpuStatus status =
      lost_.load(std::memory_order_relaxed) ? GpuStatus::Lost : classify(result);
  if (status == GpuStatus::Lost) lost_.store(true, std::memory_order_relaxed);
  if (status != GpuStatus::Ok) fail(Status::Internal, "cuda: %s", name_of(driver_, result));
  return status;
}

CopyStream* CudaGpu::own(Stream stream) noexcept {
  const std::lock_guard lock(streams_mutex_);
  const auto found = std::find_if(streams_.begin(), streams_.end(), [stream](const auto& one) {
    return one->stream == handle(stream);
  });
  return found == streams_.end() ? nullptr : found->get();
}

GpuStatus CudaGpu::create_stream(Stream* out) noexcept {
  const Current current(*device_);
  if (current.result() != kSuccess) return told(current.result());
  // Of the highest priority: a copy kernel is a few blocks that must not queue behind a batch's.
  int least = 0;
  int greatest = 0;
  Result result = driver_.priority_range(&least, &greatest);
  if (result != kSuccess) return told(result);
  void* stream = nullptr;
  result = driver_.stream_create(&stream, kStreamNonBlocking, greatest);
  if (result != kSuccess) return told(result);
  try {
    auto made =
        std::make_unique<CopyStream>(device_.get(), &kernels_, batch_, config_.host, stream);
    const std::lock_guard lock(streams_mutex_);
    streams_.push_back(std::move(made));
  } catch (const std::bad_alloc&) {
    driver_.stream_destroy(stream);
    return told(kOutOfMemory);
  }
  *out = reinterpret_cast<Stream>(stream);
  return GpuStatus::Ok;
}

void CudaGpu::destroy_stream(Stream stream) noexcept {
  const Current current(*device_);
  const std::lock_guard lock(streams_mutex_);
  const auto found = std::find_if(streams_.begin(), streams_.end(), [stream](const auto& one) {
    return one->stream == handle(stream);
  });
  if (found == streams_.end()) return;
  driver_.stream_synchronize((*found)->stream);
  driver_.stream_destroy((*found)->stream);
  streams_.erase(found);
}

GpuStatus CudaGpu::create_event(Event* out) noexcept {
  const Current current(*device_);
  if (current.result() != kSuccess) return told(current.result());
  void* event = nullptr;
  const Result result = driver_.event_create(&event, kEventNoTiming);
  if (result != kSuccess) return told(result);
  *out = reinterpret_cast<Event>(event);
  return GpuStatus::Ok;
}

void CudaGpu::destroy_event(Event event) noexcept {
  const Current current(*device_);
  driver_.event_destroy(handle(event));
}

GpuStatus CudaGpu::record(Event event, Stream stream) noexcept {
  if (legacy(stream)) return refuse_legacy("record");
  const Current current(*device_);
  if (current.result() != kSuccess) return told(current.result());
  if (own(stream) == nullptr && capturing(stream)) {
    fail(Status::Invalid, "cuda: record: the stream is being captured");
    return lost_.load(std::memory_order_relaxed) ? GpuStatus::Lost : GpuStatus::Failed;
  }
  return told(driver_.event_record(handle(event), handle(stream)));
}

GpuStatus CudaGpu::wait(Stream stream, Event event) noexcept {
  if (legacy(stream)) return refuse_legacy("wait");
  const Current current(*device_);
  if (current.result() != kSuccess) return told(current.result());
  return told(driver_.stream_wait_event(handle(stream), handle(event), 0));
}

GpuStatus CudaGpu::wait_external(Stream stream, Event event) noexcept {
  if (legacy(stream)) return refuse_legacy("wait");
  const Current current(*device_);
  if (current.result() != kSuccess) return told(current.result());
  return told(driver_.stream_wait_event(handle(stream), handle(event), kEventExternal));
}

Progress CudaGpu::query(Event event) noexcept {
  const Current current(*device_);
  const Result result =
      current.result() == kSuccess ? driver_.event_query(handle(event)) : current.result();
  if (lost_.load(std::memory_order_relaxed)) return Progress::Lost;
  if (result == kSuccess) return Progress::Done;
  if (result == kNotReady) return Progress::Pending;
  // An event that cannot be asked will never be known to have passed.
  fail(Status::Internal, "cuda: %s", name_of(driver_, result));
  lost_.store(true, std::memory_order_relaxed);
  return Progress::Lost;
}

Route CudaGpu::route_of(const Slice& slice) const noexcept {
  if (config_.route != Route::Auto) return config_.route;
  const std::uintptr_t first = slice.source.front();
  const bool out = std::any_of(config_.device.begin(), config_.device.end(),
                               [first](const MemoryRange& range) { return range.holds(first); });
  const std::uint64_t bytes =
      std::accumulate(slice.bytes.begin(), slice.bytes.end(), std::uint64_t{0});
  return table_.choose(out ? DKV_D2H : DKV_H2D, bytes, slice.bytes.size());
}

GpuStatus CudaGpu::copy(Stream stream, const Slice& slice, SourceOrder order) noexcept {
  if (slice.bytes.empty()) return GpuStatus::Ok;  // the driver refuses a batch of nothing
  CopyStream* copier = own(stream);
  if (copier == nullptr) {
    fail(Status::Invalid, "cuda: copy: not a stream of this GPU's");
    return GpuStatus::Failed;
  }
  const Current current(*device_);
  if (current.result() != kSuccess) return told(current.result());
  return told(copier->copy(route_of(slice), slice, order));
}

Status CudaGpu::rotate(Stream stream, const dkv_rotation& rotation) noexcept {
  if (legacy(stream)) {
    refuse_legacy("rotate");
    return Status::Invalid;
  }
  const Status status = rotations_.check(rotation);
  if (status != Status::Ok) return status;
  if (lost_.load(std::memory_order_relaxed))
    return fail(Status::Poisoned, "rotate: the GPU is lost");
  const Current current(*device_);
  const Result result =
      current.result() == kSuccess ? rotations_.launch(handle(stream), rotation) : current.result();
  switch (told(result)) {
    case GpuStatus::Ok:
      return Status::Ok;
    case GpuStatus::Failed:
      return fail(Status::Internal, "rotate: not launched: %s", name_of(driver_, result));
    case GpuStatus::Lost:
      break;
  }
  return fail(Status::Poisoned, "rotate: the GPU is lost: %s", name_of(driver_, result));
}

Status CudaGpu::rotation_refused(std::uint32_t direction, std::uint64_t* rows) noexcept {
  *rows = rotations_.refused(direction);
  return Status::Ok;
}

bool CudaGpu::capturing(Stream stream) noexcept {
  const Current current(*device_);
  int status = 0;
  const Result result = current.result() == kSuccess
                            ? driver_.stream_is_capturing(handle(stream), &status)
                            : current.result();
  if (classify(result) == GpuStatus::Lost) lost_.store(true, std::memory_order_relaxed);
  // Where it cannot be known (the legacy stream beside a capture), keep out.
  return result != kSuccess || status != 0;
}

void CudaGpu::drain(Stream stream) noexcept {
  const Current current(*device_);
  if (current.result() != kSuccess) return;  // a context that is gone moves nothing
  told(driver_.stream_synchronize(handle(stream)));
}

}  // namespace duplexkv::cuda

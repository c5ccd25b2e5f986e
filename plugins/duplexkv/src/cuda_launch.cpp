#include "cuda_launch.hpp"

#include <algorithm>
#include <cstring>

namespace duplexkv::cuda {
namespace {

constexpr int kRegisterCapability = 80;
constexpr int kBulkCapability = 90;

}  // namespace

Cut cut_slice(const Slice& slice, bool for_bulk, Piece* pieces, std::size_t capacity) noexcept {
  std::size_t front = 0;
  std::size_t back = capacity;  // what is not fit for bulk copies, from the end
  for (std::size_t i = 0; i < slice.bytes.size(); ++i) {
    std::uint64_t source = slice.source[i];
    std::uint64_t target = slice.target[i];
    const bool aligned = source % kBulkBytes == 0 && target % kBulkBytes == 0;
    for (std::uint64_t left = slice.bytes[i]; left > 0;) {
      if (front == back) return {};
      std::uint64_t bytes = std::min<std::uint64_t>(left, kPieceBytes);
      const bool bulk = aligned && bytes >= kBulkBytes;
      if (for_bulk && bulk) bytes -= bytes % kBulkBytes;
      Piece& piece = for_bulk && !bulk ? pieces[--back] : pieces[front++];
      piece = {.source = source, .target = target, .bytes = bytes};
      source += bytes;
      target += bytes;
      left -= bytes;
    }
  }
  const std::size_t rest = capacity - back;
  std::memmove(pieces + front, pieces + back, rest * sizeof(Piece));
  return {.count = front + rest, .bulk = front};
}

Kernels::Kernels(const Device* device, const void* image, unsigned sms_max) noexcept
    : device_(device) {
  const Driver& driver = device->driver();
  const DeviceFacts& facts = device->facts();
  sms_ = std::clamp(sms_max, 1U, static_cast<unsigned>(std::max(facts.sms, 1)));
  // Kernels read and write host memory under the address the CPU has for it.
  if (image == nullptr || facts.capability < kRegisterCapability || !facts.host_pointer_usable) {
    return;
  }
  const Current current(*device);
  if (current.result() != kSuccess) return;
  if (driver.module_load(&module_, image) != kSuccess) {
    module_ = nullptr;
    return;
  }
  if (driver.module_get_function(&register_, module_, "dkv_copy_register") != kSuccess) {
    register_ = nullptr;
  }
  if (driver.module_get_function(&rotate_, module_, "dkv_rotate") != kSuccess) rotate_ = nullptr;
  if (facts.capability >= kBulkCapability) load_bulk();
}

void Kernels::load_bulk() noexcept {
  const Driver& driver = device_->driver();
  const auto shared = static_cast<unsigned>(std::max(device_->facts().shared_bytes_optin, 0));
  stages_ = std::min(kStagesMax, shared / ring_bytes(1));
  if (stages_ < kStagesMin) return;
  void* function = nullptr;
  if (driver.module_get_function(&function, module_, "dkv_copy_bulk") != kSuccess) return;
  if (driver.function_set_attribute(function, kMaxDynamicSharedBytes,
                                    static_cast<int>(ring_bytes(stages_))) == kSuccess) {
    bulk_ = function;
  }
}

Kernels::~Kernels() {
  if (module_ == nullptr) return;
  const Current current(*device_);
  device_->driver().module_unload(module_);
}

Result Kernels::launch(Route route, void* stream, DevicePtr pieces, Cut cut) const noexcept {
  auto count = static_cast<std::uint32_t>(cut.count);
  auto bulk = static_cast<std::uint32_t>(cut.bulk);
  std::uint32_t stages = stages_;
  const Driver& driver = device_->driver();
  if (route == Route::Tma) {
    std::array<void*, 4> parameters{&pieces, &bulk, &count, &stages};
    const unsigned blocks = std::min(sms_, count);
    return driver.launch(bulk_, blocks, 1, 1, kBulkThreads, 1, 1, ring_bytes(stages_), stream,
                         parameters.data(), nullptr);
  }
  std::array<void*, 2> parameters{&pieces, &count};
  const unsigned warps = kRegisterThreads / kWarpLanes;
  const unsigned blocks = std::min(sms_, (count + warps - 1) / warps);
  return driver.launch(register_, blocks, 1, 1, kRegisterThreads, 1, 1, 0, stream,
                       parameters.data(), nullptr);
}

Result Kernels::launch_rotation(void* stream, const RotationTask& task,
                                unsigned sms_max) const noexcept {
  const auto all = static_cast<unsigned>(std::max(device_->facts().sms, 1));
  const std::uint64_t sms = sms_max == 0 ? sms_ : std::min(sms_max, all);
  constexpr unsigned kWarps = kRegisterThreads / kWarpLanes;
  // What the plan may come to; what it does come to is known on the device only.
  const std::uint64_t pieces = task.rows_max * pieces_a_row(task.pools);
  const auto blocks = static_cast<unsigned>(std::min(sms, (pieces + kWarps - 1) / kWarps));
  RotationTask copy = task;  // the driver takes parameters by addresses that are not const
  std::array<void*, 1> parameters{&copy};
  return device_->driver().launch(rotate_, blocks, 1, 1, kRegisterThreads, 1, 1, 0, stream,
                                  parameters.data(), nullptr);
}

KernelCopies::KernelCopies(const Device* device, const Kernels* kernels) noexcept
    : driver_(&device->driver()), kernels_(kernels) {
  if (kernels == nullptr || !kernels->routes().register_kernel) return;
  ready_ = make(&tables_[0]) && make(&tables_[1]);
}

bool KernelCopies::make(Table* table) noexcept {
  constexpr std::size_t kBytes = kPiecesMax * sizeof(Piece);
  void* pinned = nullptr;
  if (driver_->host_alloc(&pinned, kBytes, kHostPortableMapped) != kSuccess) return false;
  table->pinned = static_cast<Piece*>(pinned);
  if (driver_->memory_alloc(&table->on_device, kBytes) != kSuccess) {
    table->on_device = 0;
    return false;
  }
  if (driver_->event_create(&table->read, kEventNoTiming) != kSuccess) {
    table->read = nullptr;
    return false;
  }
  return true;
}

KernelCopies::~KernelCopies() {
  for (const Table& table : tables_) {
    if (table.read != nullptr) driver_->event_destroy(table.read);
    if (table.on_device != 0) driver_->memory_free(table.on_device);
    if (table.pinned != nullptr) driver_->host_free(table.pinned);
  }
}

Result KernelCopies::copy(Route route, void* stream, const Slice& slice, bool* taken) noexcept {
  *taken = false;
  Table& table = tables_[next_];
  if (!ready_ || !kernels_->routes().has(route)) return kSuccess;
  if (table.used) {
    const Result passed = driver_->event_query(table.read);
    if (passed == kNotReady) return kSuccess;
    if (passed != kSuccess) return passed;
  }
  const Cut cut = cut_slice(slice, route == Route::Tma, table.pinned, kPiecesMax);
  if (cut.count == 0) return kSuccess;
  // The event stands behind the kernel, not behind the copy of the table: the kernel reads the
  // copy.
  Result result = driver_->memcpy_async(table.on_device, reinterpret_cast<DevicePtr>(table.pinned),
                                        cut.count * sizeof(Piece), stream);
  // What is refused here moved nothing: the copy engines may do it.
  if (result != kSuccess) return classify(result) == GpuStatus::Failed ? kSuccess : result;
  result = kernels_->launch(route, stream, table.on_device, cut);
  const Result recorded = driver_->event_record(table.read, stream);
  if (recorded != kSuccess) driver_->stream_synchronize(stream);
  table.used = recorded == kSuccess;
  *taken = result == kSuccess;
  next_ = 1 - next_;
  return classify(result) == GpuStatus::Failed ? kSuccess : result;
}

}  // namespace duplexkv::cuda

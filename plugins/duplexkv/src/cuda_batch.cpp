#include "cuda_batch.hpp"

#include <algorithm>
#include <new>

namespace duplexkv::cuda {
namespace {

Slice part(const Slice& slice, std::size_t begin, std::size_t count) noexcept {
  return {.source = slice.source.subspan(begin, count),
          .target = slice.target.subspan(begin, count),
          .bytes = slice.bytes.subspan(begin, count)};
}

// The driver's parameters are not const, and its integers have another name; it only reads them.
static_assert(sizeof(DevicePtr) == sizeof(std::uintptr_t));
DevicePtr* addresses(std::span<const std::uintptr_t> from) noexcept {
  return reinterpret_cast<DevicePtr*>(const_cast<std::uintptr_t*>(from.data()));
}

bool in_capture(Result result) noexcept {
  return result >= kCaptureUnsupported && result < kCaptureUnsupported + 9;
}

}  // namespace

bool batch_is_faulty(int capability) noexcept {
  return capability == 100 || capability == 120;
}

bool CutAtChunks::cut(const Slice& slice, HostChunks chunks) {
  if (chunks.chunk_bytes == 0) return false;
  // The host's side of a copy; 0 where neither side lies in these chunks.
  const auto host_side = [chunks, &slice](std::size_t i) -> std::uintptr_t {
    if (slice.source[i] - chunks.base < chunks.bytes) return slice.source[i];
    return slice.target[i] - chunks.base < chunks.bytes ? slice.target[i] : 0;
  };
  // Bytes from a host address to the end of its chunk.
  const auto room = [chunks](std::uintptr_t host) {
    return host == 0 ? UINT64_MAX : chunks.chunk_bytes - (host - chunks.base) % chunks.chunk_bytes;
  };
  std::size_t crossing = 0;
  for (std::size_t i = 0; i < slice.bytes.size(); ++i)
    crossing += slice.bytes[i] > room(host_side(i)) ? 1U : 0U;
  if (crossing == 0) return false;
  source.clear();
  target.clear();
  bytes.clear();
  for (std::size_t i = 0; i < slice.bytes.size(); ++i) {
    const std::uintptr_t host = host_side(i);
    for (std::size_t done = 0; done < slice.bytes[i];) {
      const std::uint64_t left = slice.bytes[i] - done;
      const std::size_t now = std::min(left, room(host == 0 ? 0 : host + done));
      source.push_back(slice.source[i] + done);
      target.push_back(slice.target[i] + done);
      bytes.push_back(now);
      done += now;
    }
  }
  return true;
}

Result EngineCopies::copy(void* stream, const Slice& slice, SourceOrder order) noexcept {
  try {
    CutAtChunks& cut = cuts_[next_cut_];
    if (!cut.cut(slice, chunks_)) return copy_whole(stream, slice, order);
    next_cut_ = 1 - next_cut_;
    return copy_whole(stream, {.source = cut.source, .target = cut.target, .bytes = cut.bytes},
                      order);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

Result EngineCopies::copy_whole(void* stream, const Slice& slice, SourceOrder order) noexcept {
  const std::size_t count = slice.bytes.size();
  for (std::size_t begin = 0; begin < count; begin += kBatchCopiesMax) {
    const Slice now = part(slice, begin, std::min(kBatchCopiesMax, count - begin));
    Result result = batch_ ? copy_batch(stream, now, order) : copy_each(stream, now);
    if (result == kSuccess) continue;
    // Nothing of a refused slice may still be moving when the caller hears of it.
    if (begin > 0) driver_->stream_synchronize(stream);
    return result;
  }
  return kSuccess;
}

Result EngineCopies::copy_batch(void* stream, const Slice& slice, SourceOrder order) noexcept {
  CopyAttributes attributes{};
  attributes.source_order = order == SourceOrder::Any ? kSourceOrderAny : kSourceOrderStream;
  attributes.flags = kPreferOverlap;
  std::size_t first_copy = 0;  // that the one set of attributes is for: all
  std::size_t failed = 0;
  const Result result =
      driver_->memcpy_batch(addresses(slice.target), addresses(slice.source),
                            const_cast<std::size_t*>(slice.bytes.data()), slice.bytes.size(),
                            &attributes, &first_copy, 1, &failed, stream);
  // In a capture, single copies would become part of a graph; on a lost device nothing would.
  if (result == kSuccess || in_capture(result) || classify(result) == GpuStatus::Lost) {
    return result;
  }
  // Source and target are held by the caller, so that whatever the call began may be done again.
  if (++failures_ == kBatchFailuresMax) batch_ = false;
  return copy_each(stream, slice);
}

Result EngineCopies::copy_each(void* stream, const Slice& slice) noexcept {
  for (std::size_t i = 0; i < slice.bytes.size(); ++i) {
    const Result result =
        driver_->memcpy_async(slice.target[i], slice.source[i], slice.bytes[i], stream);
    if (result == kSuccess) continue;
    if (i > 0) driver_->stream_synchronize(stream);
    return result;
  }
  return kSuccess;
}

}  // namespace duplexkv::cuda

#include "book.hpp"

#include <cinttypes>

namespace duplexkv {
namespace {

constexpr std::uint32_t kWriter = UINT32_MAX;

std::size_t index(std::int32_t id) noexcept {
  return static_cast<std::size_t>(id);
}

}  // namespace

Status Book::take_readers(Ids ids) noexcept {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (in_air_[index(ids[i])] == kWriter) {
      drop_readers(ids.first(i));
      return fail(Status::Overlap,
                  "copy: source slot %" PRId32 " is the target of a copy in the air", ids[i]);
    }
    ++in_air_[index(ids[i])];
  }
  return Status::Ok;
}

Status Book::take_writers(Ids ids) noexcept {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (in_air_[index(ids[i])] != 0) {
      drop_writers(ids.first(i));
      return fail(Status::Overlap, "copy: target slot %" PRId32 " is used by a copy in the air",
                  ids[i]);
    }
    in_air_[index(ids[i])] = kWriter;
  }
  return Status::Ok;
}

void Book::drop_readers(Ids ids) noexcept {
  for (const std::int32_t id : ids)
    --in_air_[index(id)];
}

void Book::drop_writers(Ids ids) noexcept {
  for (const std::int32_t id : ids)
    in_air_[index(id)] = 0;
}

}  // namespace duplexkv

#include "book.hpp"

#include <algorithm>
#include <cinttypes>

namespace duplexkv {
namespace {

constexpr std::uint32_t kWriter = std::uint32_t{1} << 31;

std::size_t index(std::int32_t id) noexcept {
  return static_cast<std::size_t>(id);
}

}  // namespace

// Both enter all slots without a branch and look at what they found afterwards: sums can be taken
// back, also those of a slot that is named twice.
Status Book::take_readers(Ids ids) noexcept {
  std::uint32_t found = 0;
  for (const std::int32_t id : ids)
    found |= in_air_[index(id)]++;
  if ((found & kWriter) == 0) return Status::Ok;
  Book::drop_readers(ids);
  const auto written = std::find_if(ids.begin(), ids.end(), [this](std::int32_t id) {
    return (in_air_[index(id)] & kWriter) != 0;
  });
  return fail(Status::Overlap, "copy: source slot %" PRId32 " is the target of a copy in the air",
              *written);
}

Status Book::take_writers(Ids ids) noexcept {
  std::uint32_t found = 0;
  for (const std::int32_t id : ids) {
    std::uint32_t& users = in_air_[index(id)];
    found |= users;
    users += kWriter;
  }
  if (found == 0) return Status::Ok;
  Book::drop_writers(ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Ids before = ids.first(i);
    if (in_air_[index(ids[i])] != 0) {
      return fail(Status::Overlap, "copy: target slot %" PRId32 " is used by a copy in the air",
                  ids[i]);
    }
    if (std::find(before.begin(), before.end(), ids[i]) != before.end()) {
      return fail(Status::Overlap, "copy: target slot %" PRId32 " is named twice", ids[i]);
    }
  }
  return Status::Overlap;
}

void Book::drop_readers(Ids ids) noexcept {
  for (const std::int32_t id : ids)
    --in_air_[index(id)];
}

void Book::drop_writers(Ids ids) noexcept {
  for (const std::int32_t id : ids)
    in_air_[index(id)] -= kWriter;
}

}  // namespace duplexkv

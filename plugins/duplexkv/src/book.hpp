// Who reads and who writes each slot of one tier while copies are in the air. It refuses what the
// two lanes could not run side by side. Knows no bytes. One thread at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "error.hpp"
#include "planner.hpp"

namespace duplexkv {

class Book {
 public:
  explicit Book(std::uint64_t blocks) : in_air_(blocks, 0) {}

  // Ids must be in range. Overlap (and nothing taken): a slot to read that is being written, a slot
  // to write that is being read or written.
  Status take_readers(Ids ids) noexcept;
  Status take_writers(Ids ids) noexcept;
  void drop_readers(Ids ids) noexcept;
  void drop_writers(Ids ids) noexcept;

 private:
  std::vector<std::uint32_t> in_air_;  // readers, or kWriter
};

}  // namespace duplexkv

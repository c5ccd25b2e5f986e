// Who reads and who writes each slot of one tier while copies are in the air. It refuses what the
// two lanes could not run side by side. Knows no bytes. One thread at a time. Virtual for tests,
// which show what becomes of the bytes when one of its rules is missing.
#pragma once

#include <cstdint>
#include <vector>

#include "error.hpp"
#include "planner.hpp"

namespace duplexkv {

class Book {
 public:
  explicit Book(std::uint64_t blocks) : in_air_(blocks, 0) {}
  virtual ~Book() = default;
  Book(const Book&) = delete;
  Book& operator=(const Book&) = delete;

  // Ids must be in range. Overlap (and nothing taken): a slot to read that is being written, a slot
  // to write that is being read or written.
  virtual Status take_readers(Ids ids) noexcept;
  virtual Status take_writers(Ids ids) noexcept;
  virtual void drop_readers(Ids ids) noexcept;
  virtual void drop_writers(Ids ids) noexcept;

 private:
  std::vector<std::uint32_t> in_air_;  // readers; the highest bit: a writer
};

}  // namespace duplexkv

// A weight matrix in panels of 32 output columns, read strictly forward by the kernels.
//
// Layout: [panel][depth / pair][32][pair], pair = 2 for bf16 and 1 for fp32; outputs are padded to
// 32 and the depth to 32 with zeros. Weights that come from a quantised file may have a
// packed twin that loses no bit (Storage, shape.h): a step of few rows is as fast as it can read
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "memory.h"
#include "shape.h"

namespace superinfer::cpu {

// Where source rows go among the output columns.
enum class Placement {
  kPlain,  // row r to column first + r
  kGate,   // row r to column r / 16 * 32 + r % 16
  kUp,     // row r to column r / 16 * 32 + 16 + r % 16
};

class Matrix {
 public:
  Matrix() = default;
  Matrix(std::ptrdiff_t outputs, std::ptrdiff_t depth, Dtype dtype);

  // Asks for a storage for the rows that come next, and returns what it is then: all of a matrix is
  // stored in one way, and settled rows stay.
  Storage prepare(Storage wanted);
  // What has been stored since prepare() is to stay.
  void settle() { empty_ = false; }
  // Stores rows row_begin .. row_end - 1 of source[][source_depth]. False, with rows half stored,
  // for values that the storage cannot hold exactly (in bf16). Different rows may be stored by
  // different threads at once only when they lie in different panels.
  bool store_rows(const float* source, std::ptrdiff_t source_depth, std::ptrdiff_t row_begin,
                  std::ptrdiff_t row_end, Placement placement, std::ptrdiff_t first);
  // The weights of one output, as stored: out[depth].
  void read_row(std::ptrdiff_t output, float* out) const;

  const void* data() const { return data_.as<void>(); }
  std::ptrdiff_t panels() const { return panels_; }
  std::ptrdiff_t depth() const { return depth_; }
  std::size_t bytes() const { return data_.bytes(); }
  std::size_t panel_bytes() const { return cpu::panel_bytes(storage_, depth_, dtype_); }
  Storage storage() const { return storage_; }

  // The same weights packed, for products of few rows: made when first asked for, null when there
  // are none.
  Matrix& packed_twin();
  void drop_twin() { twin_.reset(); }
  const Matrix* twin() const { return twin_.get(); }
  // The packed twin, if it is wanted and there is one, else this.
  const Matrix& stored(bool packed) const { return packed && twin_ ? *twin_ : *this; }

 private:
  bool store_packed(const float* source, std::ptrdiff_t source_depth, std::ptrdiff_t column);
  void read_packed(std::ptrdiff_t output, float* out) const;

  Buffer data_;
  Storage storage_ = Storage::kPlain;
  bool empty_ = true;
  std::unique_ptr<Matrix> twin_;
  std::ptrdiff_t panels_ = 0;
  std::ptrdiff_t depth_ = 0;
  Dtype dtype_ = Dtype::kBf16;
};

// Nearest bf16, ties to even; a NaN stays a NaN.
std::uint16_t bf16_of(float value);

}  // namespace superinfer::cpu

// Packed weights: kept only where no bit is lost, and the same results as from plain ones, bit for
// bit, on every kernel set this CPU runs.
#include <algorithm>
#include <cmath>
#include <functional>

#include "check.h"
#include "values.h"

using namespace superinfer::cpu;

namespace {

constexpr std::ptrdiff_t kOutputs = 70;
constexpr std::ptrdiff_t kDepth = 320;

using Values = std::vector<float>;

// A value of group `group` with a code of four (or eight) bits, in fp16 steps, as files have them.
float scale_of(std::size_t group) {
  return static_cast<float>(1024 + group * 7 % 1024) * 0x1p-17F;
}

Values quantised(int codes, const std::function<float(std::size_t)>& least, Dice& dice) {
  Values values(static_cast<std::size_t>(kOutputs * kDepth));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t group = i / static_cast<std::size_t>(kGroup);
    const auto first = i % static_cast<std::size_t>(kGroup);
    auto code = static_cast<float>(dice.below(static_cast<std::size_t>(codes)));
    if (first == 0) code = 0.0F;  // a file's extremes are always there
    if (first == 1) code = static_cast<float>(codes - 1);
    const float product = scale_of(group) * code;
    values[i] = product + least(group);
  }
  return values;
}

Matrix stored(const Values& values, Storage storage) {
  Matrix matrix(kOutputs, kDepth, Dtype::kBf16);
  CHECK(matrix.prepare(storage) == storage);
  CHECK(matrix.store_rows(values.data(), kDepth, 0, kOutputs, Placement::kPlain, 0));
  matrix.settle();
  return matrix;
}

void check_same_rows(const Matrix& one, const Matrix& other) {
  Values a(static_cast<std::size_t>(kDepth));
  Values b(a.size());
  for (std::ptrdiff_t output = 0; output < kOutputs; ++output) {
    one.read_row(output, a.data());
    other.read_row(output, b.data());
    CHECK(a == b);
  }
}

Values product(const Kernels& kernels, const Matrix& weights, const Buffer& x, std::ptrdiff_t rows,
               bool by_panel) {
  const std::ptrdiff_t width = weights.panels() * kPanel;
  Values out(static_cast<std::size_t>(rows * width));
  Gemm g;
  g.x = x.as<void>();
  g.ld_x = kDepth;
  g.rows = rows;
  g.weights = weights.data();
  g.storage = weights.storage();
  g.depth = kDepth;
  g.out = out.data();
  g.ld_out = width;
  const std::ptrdiff_t step = by_panel ? 1 : weights.panels();
  for (g.panel_begin = 0; g.panel_begin < weights.panels(); g.panel_begin += step) {
    g.panel_end = g.panel_begin + step;
    kernels.gemm(g);
  }
  return out;
}

void check_same_products(const Matrix& packed, const Matrix& plain, Dice& dice) {
  for (const Kernels* kernels : supported_kernels(Dtype::kBf16)) {
    for (std::ptrdiff_t rows = 1; rows <= kernels->packed_rows_max; ++rows) {
      Buffer x(static_cast<std::size_t>(round_up(rows, kRowStep) * kDepth) *
               kernels->activation_bytes);
      for (std::ptrdiff_t i = 0; i < rows * kDepth; ++i)
        put(x.as<void>(), i, dice.next(), kernels->activation_bytes);
      const Values expected = product(*kernels, plain, x, rows, true);
      for (const bool by_panel : {false, true}) {
        const Values found = product(*kernels, packed, x, rows, by_panel);
        CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
      }
    }
  }
}

void test_same_bits(const Values& values, Storage storage) {
  Dice dice(3);
  const Matrix packed = stored(values, storage);
  const Matrix plain = stored(values, Storage::kPlain);
  CHECK(packed.bytes() * 7 < plain.bytes() * (storage == Storage::kNibbles ? 3 : 4));
  check_same_rows(packed, plain);
  check_same_products(packed, plain, dice);
}

// One value between the codes: refused, in whichever group it is.
void test_refused(Values values, Storage storage, std::size_t at) {
  values[at] += 0.37F * scale_of(at / static_cast<std::size_t>(kGroup));
  Matrix matrix(kOutputs, kDepth, Dtype::kBf16);
  CHECK(matrix.prepare(storage) == storage);
  CHECK(!matrix.store_rows(values.data(), kDepth, 0, kOutputs, Placement::kPlain, 0));
}

// Settled rows stand against another storage.
void test_settled(const Values& values, const Values& others) {
  Matrix matrix = stored(values, Storage::kNibbles);
  CHECK(matrix.prepare(Storage::kBytes) == Storage::kNibbles);
  CHECK(!matrix.store_rows(others.data(), kDepth, 0, 32, Placement::kPlain, 0));
}

}  // namespace

int main() {
  Dice dice(1);
  // Four bits with a least value (GGUF's Q4_1), four bits around zero (Q4_0), and eight (Q8_0).
  const Values fours = quantised(
      16, [](std::size_t group) { return -static_cast<float>(1024 + group * 5 % 1024) * 0x1p-14F; },
      dice);
  const Values even =
      quantised(16, [](std::size_t group) { return -8.0F * scale_of(group); }, dice);
  const Values eights =
      quantised(255, [](std::size_t group) { return -127.0F * scale_of(group); }, dice);
  test_same_bits(fours, Storage::kNibbles);
  test_same_bits(even, Storage::kNibbles);
  test_same_bits(eights, Storage::kBytes);
  for (const std::size_t at : {2UL, 333UL, static_cast<unsigned long>(kOutputs * kDepth - 1)}) {
    test_refused(fours, Storage::kNibbles, at);
    test_refused(eights, Storage::kBytes, at);
  }
  const Values zeroes(fours.size());
  test_same_bits(zeroes, Storage::kNibbles);
  test_same_bits(zeroes, Storage::kBytes);
  test_settled(fours, dice.floats(fours.size()));
  Matrix wide(kOutputs, kDepth, Dtype::kFp32);
  CHECK(wide.prepare(Storage::kNibbles) == Storage::kPlain);
  return 0;
}

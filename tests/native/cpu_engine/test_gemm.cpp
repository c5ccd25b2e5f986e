// The matrix product and its epilogues of every kernel set this CPU runs, against plain loops in
// double; and that a row's result is the same bits in any company.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "values.h"

using namespace superinfer::cpu;

namespace {

struct Case {
  Case(const Kernels& set, std::ptrdiff_t rows_count, std::ptrdiff_t outputs_count,
       std::ptrdiff_t depth_count)
      : kernels(set),
        rows(rows_count),
        outputs(outputs_count),
        depth(depth_count),
        ld(round_up(depth_count, kDepthStep)),
        weights(outputs_count, depth_count, set.dtype),
        x(static_cast<std::size_t>(round_up(rows_count, kRowStep) * ld) * set.activation_bytes) {
    Dice dice(static_cast<std::uint64_t>(rows * 1000 + outputs + depth));
    const std::vector<float> source = dice.floats(static_cast<std::size_t>(outputs * depth), 0.2F);
    weights.store_rows(source.data(), depth, 0, outputs, Placement::kPlain, 0);
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
      for (std::ptrdiff_t k = 0; k < depth; ++k) {
        put(x.as<void>(), r * ld + k, dice.next(), kernels.activation_bytes);
      }
    }
  }

  // In double, from the values as stored.
  double exact(std::ptrdiff_t row, std::ptrdiff_t output) const {
    std::vector<float> line(static_cast<std::size_t>(weights.depth()));
    weights.read_row(output, line.data());
    double sum = 0.0;
    for (std::ptrdiff_t k = 0; k < depth; ++k) {
      sum += static_cast<double>(line[static_cast<std::size_t>(k)]) *
             static_cast<double>(get(x.as<void>(), row * ld + k, kernels.activation_bytes));
    }
    return sum;
  }

  Gemm call() const {
    Gemm g;
    g.x = x.as<void>();
    g.ld_x = ld;
    g.rows = rows;
    g.weights = weights.data();
    g.depth = weights.depth();
    g.panel_end = weights.panels();
    return g;
  }

  const Kernels& kernels;
  std::ptrdiff_t rows;
  std::ptrdiff_t outputs;
  std::ptrdiff_t depth;
  std::ptrdiff_t ld;
  Matrix weights;
  Buffer x;
};

void test_store_and_add(const Case& c) {
  const std::ptrdiff_t width = c.weights.panels() * kPanel;
  std::vector<float> out(static_cast<std::size_t>(c.rows * width), -7.0F);
  std::vector<float> bias(static_cast<std::size_t>(width), 0.25F);
  Gemm g = c.call();
  g.out = out.data();
  g.ld_out = width;
  g.bias = bias.data();
  c.kernels.gemm(g);
  const double tolerance = 2e-6 * static_cast<double>(c.depth);
  for (std::ptrdiff_t r = 0; r < c.rows; ++r) {
    for (std::ptrdiff_t n = 0; n < c.outputs; ++n) {
      const double found = static_cast<double>(out[static_cast<std::size_t>(r * width + n)]);
      CHECK(std::abs(found - 0.25 - c.exact(r, n)) <= tolerance);
    }
  }
  const std::vector<float> once = out;
  g.epilogue = Epilogue::kAdd;
  c.kernels.gemm(g);
  g.epilogue = Epilogue::kStore;
  g.bias = nullptr;
  std::vector<float> bare(out.size());
  g.out = bare.data();
  c.kernels.gemm(g);
  for (std::size_t i = 0; i < out.size(); ++i)
    CHECK(out[i] == once[i] + bare[i]);

  // Each row by itself, each panel by itself: the same bits.
  for (std::ptrdiff_t r = 0; r < c.rows; ++r) {
    Buffer line(static_cast<std::size_t>(kRowStep * c.ld) * c.kernels.activation_bytes);
    std::memset(line.as<void>(), 0xff, line.bytes());  // rows beyond the last may hold anything
    const std::size_t row_bytes = static_cast<std::size_t>(c.ld) * c.kernels.activation_bytes;
    std::memcpy(line.as<void>(), c.x.as<unsigned char>() + static_cast<std::size_t>(r) * row_bytes,
                row_bytes);
    std::vector<float> one(static_cast<std::size_t>(width));
    g.x = line.as<void>();
    g.rows = 1;
    g.out = one.data();
    for (std::ptrdiff_t panel = 0; panel < c.weights.panels(); ++panel) {
      g.panel_begin = panel;
      g.panel_end = panel + 1;
      c.kernels.gemm(g);
    }
    CHECK(std::memcmp(one.data(), bare.data() + r * width, one.size() * sizeof(float)) == 0);
  }
}

void test_silu(const Case& c) {
  const std::ptrdiff_t width = c.weights.panels() * 16;
  const std::size_t element = c.kernels.activation_bytes;
  Buffer act(static_cast<std::size_t>(c.rows * width) * element);
  Gemm g = c.call();
  g.epilogue = Epilogue::kSiluMul;
  g.act = act.as<void>();
  g.ld_act = width;
  c.kernels.gemm(g);
  for (std::ptrdiff_t r = 0; r < c.rows; ++r) {
    for (std::ptrdiff_t n = 0; n < c.outputs / 32 * 16; ++n) {
      const double gate = c.exact(r, n / 16 * 32 + n % 16);
      const double up = c.exact(r, n / 16 * 32 + 16 + n % 16);
      const double expected = gate / (1.0 + std::exp(-gate)) * up;
      const double found = static_cast<double>(get(act.as<void>(), r * width + n, element));
      const double tolerance = element == 2 ? 5e-3 * std::abs(expected) + 1e-4 : 1e-4;
      CHECK(std::abs(found - expected) <= tolerance + 1e-5 * static_cast<double>(c.depth));
    }
  }
}

void test_head(const Case& c) {
  const auto rows = static_cast<std::size_t>(c.rows);
  std::vector<float> best(rows, -std::numeric_limits<float>::infinity());
  std::vector<std::int32_t> ids(rows, 0);
  std::vector<std::vector<float>> lines(rows);
  std::vector<float*> logits(rows, nullptr);
  for (std::size_t r = 0; r < rows; r += 2) {
    lines[r].assign(static_cast<std::size_t>(c.outputs), 0.0F);
    logits[r] = lines[r].data();
  }
  Gemm g = c.call();
  g.epilogue = Epilogue::kHead;
  g.columns = c.outputs;
  g.best_value = best.data();
  g.best_id = ids.data();
  g.logits = logits.data();
  for (std::ptrdiff_t panel = c.weights.panels() - 1; panel >= 0; --panel) {  // in any order
    g.panel_begin = panel;
    g.panel_end = panel + 1;
    c.kernels.gemm(g);
  }
  for (std::size_t r = 0; r < rows; r += 2) {
    const auto most = std::max_element(lines[r].begin(), lines[r].end());
    CHECK(ids[r] == most - lines[r].begin());
    CHECK(best[r] == *most);
  }
}

void test_conversions() {
  CHECK(bf16_of(1.0F) == 0x3f80);
  CHECK(bf16_of(-0.0F) == 0x8000);
  CHECK(bf16_of(1.00390625F) == 0x3f80);  // a tie goes to the even one
  CHECK(bf16_of(1.01171875F) == 0x3f82);
  CHECK((bf16_of(std::numeric_limits<float>::quiet_NaN()) & 0x7fff) > 0x7f80);
  CHECK(bf16_of(std::numeric_limits<float>::infinity()) == 0x7f80);
}

}  // namespace

int main() {
  test_conversions();
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    for (const Kernels* kernels : supported_kernels(dtype)) {
      std::printf("%s %s\n", kernels->name, dtype == Dtype::kBf16 ? "bf16" : "fp32");
      for (const std::ptrdiff_t rows : {1, 2, 5, 13, 31, 32, 33, 50}) {
        const Case wide(*kernels, rows, 70, 72);
        test_store_and_add(wide);
        test_head(wide);
        const Case deep(*kernels, rows, 64, 320);
        test_store_and_add(deep);
        test_silu(deep);
      }
    }
  }
  return 0;
}

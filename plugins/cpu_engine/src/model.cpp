#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

namespace superinfer::cpu {
namespace {

std::string label(const std::string& part, int layer, int expert) {
  std::string text = part;
  if (layer >= 0) text += " of layer " + std::to_string(layer);
  if (expert >= 0) text += ", expert " + std::to_string(expert);
  return text;
}

bool in_expert(const std::string& part) {
  return part == "gate" || part == "up" || part == "down";
}

bool in_model(const std::string& part) {
  return part == "embedding" || part == "head" || part == "norm";
}

std::string dimensions(std::ptrdiff_t rows, std::ptrdiff_t columns) {
  return std::to_string(rows) + " x " + std::to_string(columns);
}

}  // namespace

Model::Model(const Shape& shape, Dtype dtype, bool pack)
    : shape_(shape), pack_(pack && dtype == Dtype::kBf16) {
  check(shape);
  const auto hidden = static_cast<std::size_t>(round_up(shape.hidden, kDepthStep));
  const auto qkv = static_cast<std::size_t>(round_up(shape.qkv_columns(), kPanel));
  const int experts = std::max(shape.experts, 1);
  layers_.resize(static_cast<std::size_t>(shape.layers));
  for (Layer& layer : layers_) {
    layer.attention_norm.assign(hidden, 0.0F);
    layer.mlp_norm.assign(hidden, 0.0F);
    layer.qkv_bias.assign(qkv, 0.0F);
    layer.qkv = Matrix(shape.qkv_columns(), shape.hidden, dtype);
    layer.o = Matrix(shape.hidden, shape.query_columns(), dtype);
    if (shape.experts > 0) layer.router = Matrix(shape.experts, shape.hidden, dtype);
    for (int expert = 0; expert < experts; ++expert) {
      layer.gate_up.emplace_back(round_up(shape.intermediate, 16) * 2, shape.hidden, dtype);
      layer.down.emplace_back(shape.hidden, shape.intermediate, dtype);
    }
  }
  head_ = Matrix(shape.vocabulary, shape.hidden, dtype);
  if (!shape.tied_embedding) embedding_ = Matrix(shape.vocabulary, shape.hidden, dtype);
  norm_.assign(hidden, 0.0F);
}

Model::Target Model::find_in_layer(const std::string& part, Layer& layer, int expert) {
  const std::ptrdiff_t hidden = shape_.hidden;
  const std::ptrdiff_t q = shape_.query_columns();
  const std::ptrdiff_t kv = shape_.kv_columns();
  const std::ptrdiff_t middle = shape_.intermediate;
  const auto which = static_cast<std::size_t>(std::max(expert, 0));
  Target target;
  if (part == "attention_norm") target = {nullptr, &layer.attention_norm, 1, hidden, {}, 0};
  if (part == "mlp_norm") target = {nullptr, &layer.mlp_norm, 1, hidden, {}, 0};
  if (part == "q") target = {&layer.qkv, nullptr, q, hidden, Placement::kPlain, 0};
  if (part == "k") target = {&layer.qkv, nullptr, kv, hidden, Placement::kPlain, q};
  if (part == "v") target = {&layer.qkv, nullptr, kv, hidden, Placement::kPlain, q + kv};
  if (part == "o") target = {&layer.o, nullptr, hidden, q, Placement::kPlain, 0};
  if (shape_.qkv_bias) {
    if (part == "q_bias") target = {nullptr, &layer.qkv_bias, 1, q, {}, 0};
    if (part == "k_bias") target = {nullptr, &layer.qkv_bias, 1, kv, {}, q};
    if (part == "v_bias") target = {nullptr, &layer.qkv_bias, 1, kv, {}, q + kv};
  }
  if (part == "router" && shape_.experts > 0) {
    target = {&layer.router, nullptr, shape_.experts, hidden, Placement::kPlain, 0};
  }
  if (which < layer.gate_up.size()) {
    Matrix* gate_up = &layer.gate_up[which];
    if (part == "gate") target = {gate_up, nullptr, middle, hidden, Placement::kGate, 0};
    if (part == "up") target = {gate_up, nullptr, middle, hidden, Placement::kUp, 0};
    if (part == "down") target = {&layer.down[which], nullptr, hidden, middle, {}, 0};
  }
  return target;
}

Model::Target Model::find(const std::string& part, int layer, int expert) {
  Target target;
  if (in_model(part)) {
    if (part == "norm") target = {nullptr, &norm_, 1, shape_.hidden, {}, 0};
    Matrix* table = part == "head" || shape_.tied_embedding ? &head_ : &embedding_;
    const bool wanted = part == "embedding" || (part == "head" && !shape_.tied_embedding);
    if (wanted) target = {table, nullptr, shape_.vocabulary, shape_.hidden, {}, 0};
  } else if (layer >= 0 && layer < shape_.layers) {
    target = find_in_layer(part, layers_[static_cast<std::size_t>(layer)], expert);
  }
  if (target.matrix == nullptr && target.vector == nullptr) {
    throw std::invalid_argument("this model has no " + label(part, layer, expert));
  }
  return target;
}

void Model::load(Team& team, const std::string& part, int layer, int expert, const float* data,
                 std::ptrdiff_t rows, std::ptrdiff_t columns) {
  if (in_model(part)) layer = -1;
  if (!in_expert(part)) expert = -1;
  const Target target = find(part, layer, expert);
  if (rows != target.rows || columns != target.columns) {
    throw std::invalid_argument(label(part, layer, expert) + ": is " + dimensions(rows, columns) +
                                ", must be " + dimensions(target.rows, target.columns));
  }
  if (target.vector != nullptr) {
    std::copy_n(data, columns, target.vector->begin() + target.first);
  } else {
    store(team, *target.matrix, target, data);
    if (pack_) pack(team, target, data);
  }
  loaded_.insert(label(part, layer, expert));
}

bool Model::store(Team& team, Matrix& matrix, const Target& target, const float* data) {
  // Shares end where a panel ends, also for rows that begin in the middle of one.
  const std::ptrdiff_t rows = target.rows;
  const std::ptrdiff_t lead = (kPanel - target.first % kPanel) % kPanel;
  const std::ptrdiff_t parts = (rows - std::min(lead, rows) + kPanel - 1) / kPanel + 1;
  std::atomic<bool> fits{true};
  team.start(
      [&](int thread) {
        team.share(thread, 0, parts, [&](std::ptrdiff_t item) {
          const std::ptrdiff_t begin = item == 0 ? 0 : lead + (item - 1) * kPanel;
          const std::ptrdiff_t end = std::min(rows, lead + item * kPanel);
          if (begin >= end || !fits.load(std::memory_order_relaxed)) return;
          if (!matrix.store_rows(data, target.columns, begin, end, target.placement,
                                 target.first)) {
            fits.store(false, std::memory_order_relaxed);
          }
        });
      },
      1);
  team.wait();
  return fits.load(std::memory_order_relaxed);
}

// A part that cannot be packed as the parts before it leaves the matrix without a twin.
void Model::pack(Team& team, const Target& target, const float* data) {
  if (unpacked_.contains(target.matrix)) return;
  Matrix& twin = target.matrix->packed_twin();
  for (const Storage wanted : {Storage::kNibbles, Storage::kBytes}) {
    if (twin.prepare(wanted) != wanted || !store(team, twin, target, data)) continue;
    twin.settle();
    return;
  }
  target.matrix->drop_twin();
  unpacked_.insert(target.matrix);
}

void Model::set_frequencies(const float* inverse, std::ptrdiff_t count, std::ptrdiff_t positions) {
  if (count != half()) throw std::invalid_argument("frequencies: must be head_dim / 2 values");
  cosine_.resize(static_cast<std::size_t>(positions * count));
  sine_.resize(static_cast<std::size_t>(positions * count));
  for (std::ptrdiff_t position = 0; position < positions; ++position) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      // The angle is rounded to fp32 before the cosine is taken, as the reference does.
      const float angle = static_cast<float>(position) * inverse[i];
      const auto at = static_cast<std::size_t>(position * count + i);
      cosine_[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sine_[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  positions_ = positions;
}

std::vector<std::string> Model::expected() const {
  std::vector<std::string> parts = {label("embedding", -1, -1), label("norm", -1, -1)};
  if (!shape_.tied_embedding) parts.push_back(label("head", -1, -1));
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (const char* part : {"attention_norm", "mlp_norm", "q", "k", "v", "o"}) {
      parts.push_back(label(part, layer, -1));
    }
    if (shape_.qkv_bias) {
      for (const char* part : {"q_bias", "k_bias", "v_bias"})
        parts.push_back(label(part, layer, -1));
    }
    if (shape_.experts > 0) parts.push_back(label("router", layer, -1));
    for (int expert = 0; expert < std::max(shape_.experts, 1); ++expert) {
      for (const char* part : {"gate", "up", "down"})
        parts.push_back(label(part, layer, expert));
    }
  }
  return parts;
}

void Model::require_complete() const {
  for (const std::string& part : expected()) {
    if (!loaded_.contains(part)) throw std::invalid_argument("weights: missing " + part);
  }
  if (positions_ == 0) throw std::invalid_argument("weights: missing the rotary frequencies");
}

void Model::embed(std::int32_t token, float* out) const {
  const Matrix& table = shape_.tied_embedding ? head_ : embedding_;
  table.read_row(token, out);
}

std::size_t Model::weight_bytes() const {
  const auto read = [](const Matrix& matrix) {
    return matrix.twin() == nullptr ? matrix.bytes() : matrix.twin()->bytes();
  };
  std::size_t bytes = read(head_);
  for (const Layer& layer : layers_) {
    bytes += read(layer.qkv) + read(layer.o) + read(layer.router);
    for (const Matrix& matrix : layer.gate_up)
      bytes += read(matrix);
    for (const Matrix& matrix : layer.down)
      bytes += read(matrix);
  }
  return bytes;
}

}  // namespace superinfer::cpu

// All weights of a model, packed for the kernels, and the rotary tables.
//
// Knows no file format: parts come by name, one tensor at a time. Written by one thread before the
// first step, read by all afterwards.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include "matrix.h"
#include "shape.h"
#include "team.h"

namespace superinfer::cpu {

struct Layer {
  std::vector<float> attention_norm;  // [hidden padded]
  std::vector<float> mlp_norm;        // [hidden padded]
  std::vector<float> qkv_bias;        // [qkv columns padded], zero without a bias
  Matrix qkv;
  Matrix o;
  Matrix router;                // only with experts
  std::vector<Matrix> gate_up;  // one per expert, or one
  std::vector<Matrix> down;
};

class Model {
 public:
  // `pack`: bf16 matrices whose values allow it get a packed twin.
  Model(const Shape& shape, Dtype dtype, bool pack);

  // Parts: embedding, head, norm; per layer attention_norm, mlp_norm, q, k, v, o, q_bias, k_bias,
  // v_bias, router; per expert (0 when dense) gate, up, down. Matrices are [outputs][inputs],
  // vectors have rows == 1. Throws std::invalid_argument that names what is wrong.
  void load(Team& team, const std::string& part, int layer, int expert, const float* data,
            std::ptrdiff_t rows, std::ptrdiff_t columns);
  // Rotary tables for positions 0 .. positions - 1 from head_dim / 2 inverse frequencies.
  void set_frequencies(const float* inverse, std::ptrdiff_t count, std::ptrdiff_t positions);
  // Throws std::invalid_argument that names the first missing part.
  void require_complete() const;

  const Shape& shape() const { return shape_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Matrix& head() const { return head_; }
  const std::vector<float>& norm() const { return norm_; }
  const float* cosine(std::ptrdiff_t position) const { return cosine_.data() + position * half(); }
  const float* sine(std::ptrdiff_t position) const { return sine_.data() + position * half(); }
  std::ptrdiff_t positions() const { return positions_; }
  // The embedding of a token: out[hidden padded].
  void embed(std::int32_t token, float* out) const;
  // Bytes that one step of one row reads at least: all weights of a dense model but the untied
  // embedding, packed where they are.
  std::size_t weight_bytes() const;

 private:
  struct Target {
    Matrix* matrix = nullptr;
    std::vector<float>* vector = nullptr;
    std::ptrdiff_t rows = 1;
    std::ptrdiff_t columns = 0;
    Placement placement = Placement::kPlain;
    std::ptrdiff_t first = 0;
  };

  std::ptrdiff_t half() const { return shape_.head_dim / 2; }
  Target find(const std::string& part, int layer, int expert);
  Target find_in_layer(const std::string& part, Layer& layer, int expert);
  // False when the storage of the matrix cannot hold the values.
  static bool store(Team& team, Matrix& matrix, const Target& target, const float* data);
  void pack(Team& team, const Target& target, const float* data);
  std::vector<std::string> expected() const;

  Shape shape_;
  bool pack_;
  std::set<const Matrix*> unpacked_;  // those that have been found not to be packable
  std::vector<Layer> layers_;
  Matrix embedding_;  // empty when tied
  Matrix head_;
  std::vector<float> norm_;
  std::vector<float> cosine_;
  std::vector<float> sine_;
  std::ptrdiff_t positions_ = 0;
  std::set<std::string> loaded_;
};

}  // namespace superinfer::cpu

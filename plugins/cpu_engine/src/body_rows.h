// What is done to one row at a time: norm, rotary embedding with the write to the pool, and the
// exponentials of sampling. The table of a set is put together here.
#pragma once

#include "body_attention.h"

namespace superinfer::cpu {
namespace {

template <class Activation>
void norm(const float* h, const float* weight, std::ptrdiff_t hidden, float eps, void* x) {
  F16 sum0 = set1(0.0F);
  F16 sum1 = set1(0.0F);
  const std::ptrdiff_t padded = round_up(hidden, kDepthStep);
  for (std::ptrdiff_t i = 0; i < padded; i += 32) {
    const F16 a = load(h + i);
    const F16 b = load(h + i + 16);
    sum0 = fma(a, a, sum0);
    sum1 = fma(b, b, sum1);
  }
  const float mean = reduce_add(add(sum0, sum1)) / static_cast<float>(hidden);
  const F16 factor = set1(1.0F / __builtin_sqrtf(mean + eps));
  auto* out = static_cast<Activation*>(x);
  for (std::ptrdiff_t i = 0; i < padded; i += 16) {
    store(out + i, mul(mul(load(h + i), factor), load(weight + i)));
  }
}

// Rotates one head: out[i] = a cos - b sin, out[half + i] = b cos + a sin.
template <class Out>
inline void rotate_head(const float* in, const float* cosine, const float* sine,
                        std::ptrdiff_t half, Out* out) {
  std::ptrdiff_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const F16 a = load(in + i);
    const F16 b = load(in + half + i);
    const F16 c = load(cosine + i);
    const F16 s = load(sine + i);
    store(out + i, sub(mul(a, c), mul(b, s)));
    store(out + half + i, add(mul(b, c), mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = in[i];
    const float b = in[half + i];
    store_one(out + i, a * cosine[i] - b * sine[i]);
    store_one(out + half + i, b * cosine[i] + a * sine[i]);
  }
}

template <class Out>
inline void copy_row(const float* in, std::ptrdiff_t count, Out* out) {
  std::ptrdiff_t i = 0;
  for (; i + 16 <= count; i += 16)
    store(out + i, load(in + i));
  for (; i < count; ++i)
    store_one(out + i, in[i]);
}

template <class Flavour>
void rope(const Rope& r) {
  const std::ptrdiff_t dim = r.head_dim;
  auto* q = static_cast<typename Flavour::Activation*>(r.q);
  auto* key = reinterpret_cast<typename Flavour::Weight*>(r.key);
  auto* value = reinterpret_cast<typename Flavour::Weight*>(r.value);
  for (std::ptrdiff_t head = 0; head < r.heads; ++head) {
    rotate_head(r.qkv + head * dim, r.cosine, r.sine, dim / 2, q + head * dim);
  }
  const float* k = r.qkv + r.heads * dim;
  for (std::ptrdiff_t head = 0; head < r.kv_heads; ++head) {
    rotate_head(k + head * dim, r.cosine, r.sine, dim / 2, key + head * dim);
  }
  copy_row(k + r.kv_heads * dim, r.kv_heads * dim, value);
}

double exp_sum(const float* x, std::ptrdiff_t count, float shift, float scale, float* out) {
  constexpr std::ptrdiff_t kStretch = 4096;  // short fp32 sums, added in double
  double total = 0.0;
  for (std::ptrdiff_t begin = 0; begin < count; begin += kStretch) {
    const std::ptrdiff_t end = lesser(begin + kStretch, count);
    F16 sum = set1(0.0F);
    std::ptrdiff_t i = begin;
    for (; i + 16 <= end; i += 16) {
      const F16 e = exp(mul(sub(load(x + i), set1(shift)), set1(scale)));
      sum = add(sum, e);
      store(out + i, e);
    }
    total += static_cast<double>(reduce_add(sum));
    for (; i < end; ++i) {
      out[i] = exp1((x[i] - shift) * scale);
      total += static_cast<double>(out[i]);
    }
  }
  return total;
}

template <class Flavour>
std::size_t attention_scratch_bytes(int group, int head_dim) {
  return AttentionScratch<Flavour>::bytes(group, head_dim);
}

template <class Flavour>
constexpr Kernels make_kernels(const char* name, Dtype dtype) {
  Kernels kernels;
  kernels.name = name;
  kernels.dtype = dtype;
  kernels.activation_bytes = sizeof(typename Flavour::Activation);
  kernels.packed_rows_max = packed_rows_max<Flavour>();
  kernels.gemm = gemm<Flavour>;
  kernels.attention = attention<Flavour>;
  kernels.attention_scratch_bytes = attention_scratch_bytes<Flavour>;
  kernels.norm = norm<typename Flavour::Activation>;
  kernels.rope = rope<Flavour>;
  kernels.exp_sum = exp_sum;
  return kernels;
}

}  // namespace
}  // namespace superinfer::cpu

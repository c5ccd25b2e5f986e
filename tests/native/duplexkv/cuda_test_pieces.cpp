// What the copy kernels do, on the CPU: the lanes of a warp copy each byte of a piece once, and a
// slice is cut into pieces that fit.
#include <cstring>
#include <random>
#include <vector>

#include "../check.hpp"
#include "cuda_launch.hpp"

namespace {

using duplexkv::Slice;
using duplexkv::cuda::copy_piece;
using duplexkv::cuda::Cut;
using duplexkv::cuda::cut_slice;
using duplexkv::cuda::kBulkBytes;
using duplexkv::cuda::kPieceBytes;
using duplexkv::cuda::Piece;
using duplexkv::cuda::Split;

std::uint64_t number(const void* pointer) {
  return reinterpret_cast<std::uint64_t>(pointer);
}

void a_split_is_aligned_and_whole() {
  std::mt19937_64 random(11);
  for (int round = 0; round < 200000; ++round) {
    const Piece piece{
        .source = random() % 4096, .target = random() % 4096, .bytes = random() % 200};
    const Split parts = split(piece);
    CHECK(parts.head + parts.words * parts.width + parts.tail == piece.bytes);
    CHECK(parts.head < parts.width && parts.tail < parts.width);
    if (parts.words > 0) {
      CHECK((piece.source + parts.head) % parts.width == 0);
      CHECK((piece.target + parts.head) % parts.width == 0);
    }
    const bool wider = (piece.source ^ piece.target) % (2 * parts.width) == 0;
    CHECK(parts.width == 16 || !wider);
  }
}

// Lanes in any order: none relies on another.
void lanes_copy_every_byte_and_no_other() {
  std::mt19937_64 random(12);
  std::vector<unsigned char> source(20000);
  for (unsigned char& byte : source)
    byte = static_cast<unsigned char>(random());
  const std::size_t sizes[] = {0, 1, 2, 15, 16, 17, 511, 512, 513, 4095, 4096, 4097, 16000, 16384};
  for (const std::size_t size : sizes) {
    for (int round = 0; round < 60; ++round) {
      const std::size_t from = random() % 40;
      const std::size_t to = random() % 40;
      std::vector<unsigned char> target(size + 100, 0x5A);
      std::vector<unsigned char> want = target;
      std::memcpy(want.data() + to, source.data() + from, size);
      const Piece piece{.source = number(source.data() + from),
                        .target = number(target.data() + to),
                        .bytes = size};
      const unsigned first = static_cast<unsigned>(random() % 32);
      for (unsigned lane = 0; lane < 32; ++lane)
        copy_piece(piece, (first + 5 * lane) % 32, 32);
      CHECK(target == want);
    }
  }
}

// Pieces only carry addresses here: byte i of a target comes from byte i of its source.
void a_cut_covers_a_slice_once() {
  std::mt19937_64 random(13);
  for (int round = 0; round < 3000; ++round) {
    const std::size_t count = 1 + random() % 20;
    std::vector<std::uintptr_t> source;
    std::vector<std::uintptr_t> target;
    std::vector<std::size_t> bytes;
    std::uint64_t left = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t grain = random() % 3 == 0 ? 1 : 16;
      source.push_back((1 << 30) + i * (1 << 20) + random() % 64 * grain);
      target.push_back((2ULL << 30) + i * (1 << 20) + random() % 64 * grain);
      bytes.push_back((1 + random() % 3000) * (random() % 2 == 0 ? 16 : 13));
      left += bytes.back();
    }
    const Slice slice{.source = source, .target = target, .bytes = bytes};
    const bool for_bulk = random() % 2 == 0;
    std::vector<Piece> pieces(400);
    const Cut cut = cut_slice(slice, for_bulk, pieces.data(), pieces.size());
    CHECK(cut.count > 0 && cut.bulk <= cut.count);
    std::vector<std::size_t> seen(count, 0);
    for (std::size_t i = 0; i < cut.count; ++i) {
      const Piece& piece = pieces[i];
      const std::size_t of = (piece.source - (1 << 30)) >> 20;
      CHECK(piece.bytes > 0 && piece.bytes <= kPieceBytes);
      CHECK(piece.source - source[of] == piece.target - target[of]);
      CHECK(piece.source - source[of] + piece.bytes <= bytes[of]);
      seen[of] += piece.bytes;
      const bool fit = (piece.source | piece.target | piece.bytes) % kBulkBytes == 0;
      CHECK(!for_bulk || i >= cut.bulk || fit);
      CHECK(!for_bulk || i < cut.bulk || !fit);
    }
    CHECK(seen == bytes);
  }
}

void a_slice_that_does_not_fit_is_declined() {
  const std::vector<std::uintptr_t> source{1 << 20, 1 << 21};
  const std::vector<std::uintptr_t> target{1 << 22, 1 << 23};
  const std::vector<std::size_t> bytes{3 * kPieceBytes, kPieceBytes + 1};
  const Slice slice{.source = source, .target = target, .bytes = bytes};
  std::vector<Piece> pieces(5);
  CHECK(cut_slice(slice, true, pieces.data(), 5).count == 5);
  CHECK(cut_slice(slice, true, pieces.data(), 5).bulk == 4);
  CHECK(cut_slice(slice, true, pieces.data(), 4).count == 0);
  CHECK(cut_slice(slice, false, pieces.data(), 4).count == 0);
}

// A block that is one row in DRAM and one part per layer in HBM, and back: both ways are nothing
// but descriptors.
void a_layer_first_pool_becomes_block_first() {
  constexpr std::size_t kLayers = 6;
  constexpr std::size_t kBlocks = 5;
  constexpr std::size_t kPart = 1040;  // of one layer of one block
  std::vector<unsigned char> device(kLayers * kBlocks * kPart);
  std::vector<unsigned char> host(device.size(), 0);
  std::vector<unsigned char> again(device.size(), 0);
  for (std::size_t i = 0; i < device.size(); ++i)
    device[i] = static_cast<unsigned char>(i * 7 + i / 253);
  std::vector<std::uintptr_t> in_layers;
  std::vector<std::uintptr_t> in_rows;
  std::vector<std::uintptr_t> back;
  for (std::size_t block = 0; block < kBlocks; ++block) {
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      in_layers.push_back(number(device.data() + (layer * kBlocks + block) * kPart));
      in_rows.push_back(number(host.data() + (block * kLayers + layer) * kPart));
      back.push_back(number(again.data() + (layer * kBlocks + block) * kPart));
    }
  }
  const std::vector<std::size_t> bytes(in_layers.size(), kPart);
  std::vector<Piece> pieces(100);
  const auto run = [&](const Slice& slice) {
    const Cut cut = cut_slice(slice, true, pieces.data(), pieces.size());
    for (std::size_t i = 0; i < cut.count; ++i) {
      for (unsigned lane = 0; lane < 32; ++lane)
        copy_piece(pieces[i], lane, 32);
    }
  };
  run({.source = in_layers, .target = in_rows, .bytes = bytes});
  run({.source = in_rows, .target = back, .bytes = bytes});
  CHECK(again == device);
  CHECK(std::memcmp(host.data() + kPart, device.data() + kBlocks * kPart, kPart) == 0);
}

}  // namespace

int main() {
  RUN(a_split_is_aligned_and_whole);
  RUN(lanes_copy_every_byte_and_no_other);
  RUN(a_cut_covers_a_slice_once);
  RUN(a_slice_that_does_not_fit_is_declined);
  RUN(a_layer_first_pool_becomes_block_first);
  return 0;
}

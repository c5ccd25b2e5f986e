// The copy kernels: two for slices of the lanes, one for plans that lie on the device. One of the
// ends of every piece is host memory, seen through the link. Few blocks, each at home on one
// multiprocessor: the caller's budget of them is the grid.
#include "cuda_pieces.hpp"
#include "cuda_rotation.hpp"

using duplexkv::cuda::copy_piece;
using duplexkv::cuda::kBulkThreads;
using duplexkv::cuda::kPieceBytes;
using duplexkv::cuda::kRegisterThreads;
using duplexkv::cuda::kStagesLeaving;
using duplexkv::cuda::kWarpLanes;
using duplexkv::cuda::Piece;
using duplexkv::cuda::rotate_share;
using duplexkv::cuda::RotationTask;

// A warp takes a piece, then the one that is as many warps further on.
extern "C" __global__ void __launch_bounds__(kRegisterThreads, 1)
    dkv_copy_register(const Piece* __restrict__ pieces, std::uint32_t count) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  const unsigned warps_of_block = blockDim.x / kWarpLanes;
  const unsigned warps = gridDim.x * warps_of_block;
  for (unsigned at = blockIdx.x * warps_of_block + threadIdx.x / kWarpLanes; at < count;
       at += warps) {
    copy_piece(pieces[at], lane, kWarpLanes);
  }
}

// The grid is the same however many rows there are: warps without one end at once. The counter is
// host memory, to which atomics of one GPU are atomic among themselves; the host only reads it.
extern "C" __global__ void __launch_bounds__(kRegisterThreads, 1)
    dkv_rotate(const __grid_constant__ RotationTask task) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  const unsigned warps_of_block = blockDim.x / kWarpLanes;
  const std::uint64_t refused =
      rotate_share(task, blockIdx.x * warps_of_block + threadIdx.x / kWarpLanes,
                   gridDim.x * warps_of_block, lane, kWarpLanes);
  if (lane == 0 && refused != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(task.refused), refused);
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace {

__device__ __forceinline__ void barrier_init(std::uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// Starts the fetch of a piece; the barrier's phase ends when all its bytes are in `stage`.
__device__ __forceinline__ void fetch(const Piece& piece, std::uint32_t stage,
                                      std::uint32_t barrier) {
  const auto bytes = static_cast<std::uint32_t>(piece.bytes);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(stage),
      "l"(piece.source), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void send(const Piece& piece, std::uint32_t stage) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;" ::"l"(piece.target),
      "r"(stage), "r"(static_cast<std::uint32_t>(piece.bytes))
      : "memory");
}

// Pieces blockIdx.x, blockIdx.x + gridDim.x, ... of `count` go through a ring of `stages`: all but
// kStagesLeaving are being filled while those leave. One thread.
__device__ __forceinline__ void run_ring(const Piece* __restrict__ pieces, std::uint32_t count,
                                         std::uint32_t stages, std::uint32_t ring) {
  if (blockIdx.x >= count) return;
  const std::uint32_t mine = (count - blockIdx.x + gridDim.x - 1) / gridDim.x;
  const std::uint32_t ahead = stages - kStagesLeaving;
  const std::uint32_t barriers = ring + stages * kPieceBytes;
  const auto piece = [&](std::uint32_t i) { return pieces[blockIdx.x + i * gridDim.x]; };
  for (std::uint32_t stage = 0; stage < stages; ++stage)
    barrier_init(barriers + 8 * stage);
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
  for (std::uint32_t i = 0; i < ahead && i < mine; ++i)
    fetch(piece(i), ring + i * kPieceBytes, barriers + 8 * i);
  std::uint32_t leaving = 0;      // stage of piece i
  std::uint32_t filling = ahead;  // stage of piece i + ahead
  std::uint32_t parity = 0;       // of the barrier of `leaving`
  for (std::uint32_t i = 0; i < mine; ++i) {
    barrier_wait(barriers + 8 * leaving, parity);
    send(piece(i), ring + leaving * kPieceBytes);
    if (i + ahead < mine) {
      // The stage was last sent kStagesLeaving sends ago: all but the newest that many have been
      // read.
      asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kStagesLeaving) : "memory");
      fetch(piece(i + ahead), ring + filling * kPieceBytes, barriers + 8 * filling);
    }
    if (++leaving == stages) {
      leaving = 0;
      parity ^= 1;
    }
    if (++filling == stages) filling = 0;
  }
  // Not only read from shared memory: arrived, before the kernel ends.
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

}  // namespace

#endif

// The first `bulk` pieces are fit for bulk copies and no larger than a stage; the others go through
// the registers of the second warp.
extern "C" __global__ void __launch_bounds__(kBulkThreads, 1)
    dkv_copy_bulk(const Piece* __restrict__ pieces, std::uint32_t bulk, std::uint32_t count,
                  std::uint32_t stages) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char ring[];
  if (threadIdx.x == 0) {
    run_ring(pieces, bulk, stages, static_cast<std::uint32_t>(__cvta_generic_to_shared(ring)));
  } else if (threadIdx.x >= kWarpLanes) {
    for (unsigned at = bulk + blockIdx.x; at < count; at += gridDim.x)
      copy_piece(pieces[at], threadIdx.x - kWarpLanes, kWarpLanes);
  }
#else
  // Never launched here: no such copies before compute capability 9.0.
  static_cast<void>(pieces);
  static_cast<void>(bulk);
  static_cast<void>(count);
  static_cast<void>(stages);
#endif
}

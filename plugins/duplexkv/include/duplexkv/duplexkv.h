/* DuplexKV: moves KV blocks between device and host memory, both directions at once.
 *
 * Plain C. Every function returns a dkv_status; on anything but DKV_OK and DKV_BUSY,
 * dkv_last_error() of the same thread says which value broke which limit. Nothing here throws,
 * prints or ends the process.
 *
 * Structs start with struct_size: set it to sizeof of the struct you were compiled with. A library
 * that is older than its caller accepts the longer struct as long as the part it does not know is
 * 0.
 *
 * Threads: an engine may be used from any thread; submits are serialised, dkv_poll never waits.
 * Only dkv_engine_destroy must be the last call. An engine does not survive fork(): every call in
 * the child is refused with DKV_FORKED, except dkv_engine_destroy, which then leaves it alone.
 */
#ifndef DUPLEXKV_DUPLEXKV_H_
#define DUPLEXKV_DUPLEXKV_H_

#include <stdint.h>

#if defined(DUPLEXKV_SHARED)
#define DKV_API __attribute__((visibility("default")))
#else
#define DKV_API
#endif

#define DKV_VERSION_MAJOR 0
#define DKV_VERSION_MINOR 3

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dkv_status {
  DKV_OK = 0,
  DKV_BUSY = 1,         /* the queue has no room now; nothing was queued */
  DKV_INVALID = 2,      /* an argument that can never be right */
  DKV_OUT_OF_RANGE = 3, /* a slot id outside its pool */
  DKV_OVERLAP = 4,      /* two copies, queued or new, that may not run side by side */
  DKV_TOO_LARGE = 5,    /* more than the machine or the queue can ever hold */
  DKV_NO_MEMORY = 6,
  DKV_POISONED = 7, /* this lane copies no more; build a new engine */
  DKV_CLOSED = 8,
  DKV_FORKED = 9,
  DKV_UNSUPPORTED = 10, /* this build has no such backend or does not know such a field */
  DKV_INTERNAL = 11,
  DKV_NO_DEVICE = 12, /* no CUDA driver, no such GPU, or one too old */
  DKV_ABSENT = 13     /* no engine of this name now; see registry.h */
} dkv_status;

typedef enum dkv_direction { DKV_D2H = 0, DKV_H2D = 1 } dkv_direction;

typedef enum dkv_backend {
  DKV_BACKEND_HOST = 0, /* both tiers are memory of this process */
  DKV_BACKEND_CUDA = 1  /* the device tier is a GPU's, the host tier page-locked */
} dkv_backend;

/* What moves a slice on a GPU. The kernels are in builds that had nvcc. */
typedef enum dkv_route {
  DKV_ROUTE_AUTO = 0,
  DKV_ROUTE_COPY_ENGINE = 1,
  DKV_ROUTE_REGISTER = 2, /* a kernel, through registers; compute capability >= 8.0 */
  DKV_ROUTE_TMA = 3       /* a kernel, bulk copies through shared memory; >= 9.0 */
} dkv_route;

/* Whether the copy engines are given many copies in one call. AUTO: where the driver has the call,
 * the architecture is not known for faults of it, and a trial copied every byte. */
typedef enum dkv_batch { DKV_BATCH_AUTO = 0, DKV_BATCH_ON = 1, DKV_BATCH_OFF = 2 } dkv_batch;

/* Of one group. */
typedef enum dkv_group_flag {
  /* Copied ahead of need: it goes when nothing urgent is ready, and finds DKV_BUSY first. */
  DKV_EAGER = 1
} dkv_group_flag;

/* Of dkv_stream_wait. */
typedef enum dkv_wait_flag {
  /* A node of the graph being captured from the stream. Each launch waits for all copies in that
   * are in their lane's stream by then; the ticket is not looked at. */
  DKV_WAIT_EXTERNAL = 1
} dkv_wait_flag;

/* How a group ended. For anything but DKV_DONE nothing may be assumed about the target. */
typedef enum dkv_outcome { DKV_DONE = 0, DKV_FAILED = 1, DKV_CANCELLED = 2 } dkv_outcome;

typedef struct dkv_arena dkv_arena;
typedef struct dkv_engine dkv_engine;
typedef struct dkv_budget dkv_budget;

/* A part of every block of a pool: of block i the `bytes` at base + i * stride. */
typedef struct dkv_segment {
  void* base;
  uint64_t stride;
  uint64_t bytes;
} dkv_segment;

/* A 0 in a limit means its default, in a rate no limit. */
typedef struct dkv_config {
  uint32_t struct_size;
  uint32_t backend;  /* dkv_backend */
  void* device_base; /* [device_blocks, block_bytes], owned by the caller, outlives the engine */
  uint64_t device_blocks;
  void* host_base; /* [host_blocks, block_bytes], likewise */
  uint64_t host_blocks;
  uint64_t block_bytes;
  double d2h_bytes_per_s;
  double h2d_bytes_per_s;
  uint32_t queue_groups_max;      /* of one lane, submitted and not yet polled; default 4096 */
  uint32_t slice_descriptors_max; /* default and upper limit 4096 */
  uint64_t queue_bytes_max;       /* of one lane; one larger submit may go alone; default 1 GiB */
  uint64_t slice_bytes_max;       /* default and upper limit 32 MiB */
  /* DKV_BACKEND_CUDA only. */
  int32_t cuda_device;            /* ordinal */
  uint32_t cuda_route;            /* dkv_route; DKV_ROUTE_AUTO: as measured */
  uint32_t cuda_sms_max;          /* multiprocessors the copy kernels may take; default 4 */
  uint32_t cuda_batch;            /* dkv_batch */
  const char* cuda_routes_file;   /* keeps what was measured for the next start; NULL: nowhere */
  uint64_t cuda_host_chunk_bytes; /* no copy may cross a multiple of it from host_base; 0: any */
  /* Since 0.3. A block is the bytes of its segments, one behind the other: two segments a layer
   * for a layer-first pool, one for each of several pools with the same ids. Both tiers as they
   * like; either has block_bytes a block. NULL: block-first from the pool's base. Beside segments a
   * base is not read, but host_base for cuda_host_chunk_bytes. */
  const dkv_segment* device_segments;
  uint64_t device_segment_count; /* upper limit 4096 */
  const dkv_segment* host_segments;
  uint64_t host_segment_count;
  dkv_budget* budget;    /* what engines share; NULL: none */
  uint32_t host_threads; /* DKV_BACKEND_HOST: that copy, of each lane; default 1, limit 64 */
  uint32_t reserved;     /* 0 */
} dkv_config;

/* `group_count` groups; group g copies source[i] -> target[i] for i in
 * [offsets[g], offsets[g + 1]) once turn after[g] is marked (-1: at once). Read before return. */
typedef struct dkv_submission {
  uint32_t struct_size;
  uint32_t direction; /* dkv_direction */
  const int32_t* source;
  const int32_t* target;
  uint64_t id_count;      /* length of source and of target */
  const int64_t* offsets; /* [group_count + 1], ascending from 0 to id_count */
  const int64_t* after;   /* [group_count] */
  uint64_t group_count;
  const uint8_t* flags; /* [group_count] of dkv_group_flag; NULL: none. Since 0.2 */
} dkv_submission;

/* Of one lane. Counters run from the start of the engine. */
typedef struct dkv_stats {
  uint32_t struct_size;
  uint32_t poisoned;
  uint64_t bytes; /* copied in slices that ended well */
  uint64_t slices;
  uint64_t descriptors; /* contiguous copies after merging */
  uint64_t groups_done;
  uint64_t groups_failed;
  uint64_t groups_cancelled;
  uint64_t busy_ns;         /* from the start of each slice to its end, the rate limit included */
  uint64_t queued_groups;   /* submitted and not ended now */
  uint64_t unpolled_groups; /* submitted and not polled now */
  uint64_t unpolled_bytes;
} dkv_stats;

/* major << 16 | minor of the library. */
DKV_API uint32_t dkv_version(void);
DKV_API const char* dkv_status_name(dkv_status status);

/* Of the newest refusal in this thread; "" before. Valid until the thread's next refusal. */
DKV_API const char* dkv_last_error(void);

/* Zeroed memory of blocks * block_bytes, 2 MiB-aligned, huge pages where the system has them.
 * DKV_INVALID for a 0, DKV_TOO_LARGE beyond the machine's memory, DKV_NO_MEMORY if refused by it.
 */
DKV_API dkv_status dkv_arena_create(uint64_t blocks, uint64_t block_bytes, dkv_arena** out);
DKV_API void* dkv_arena_base(const dkv_arena* arena);
DKV_API uint64_t dkv_arena_bytes(const dkv_arena* arena);
DKV_API void dkv_arena_destroy(dkv_arena* arena);

/* A rate that the lanes of all engines made with it keep together: copies in go first, then copies
 * out, those with DKV_EAGER last, but none waits for ever. For engines of several GPUs over the
 * memory of one host node. Engines keep what they share: it may be destroyed before them.
 * DKV_INVALID for a rate below 1e6. */
DKV_API dkv_status dkv_budget_create(double bytes_per_s, dkv_budget** out);
DKV_API void dkv_budget_destroy(dkv_budget* budget);

DKV_API dkv_status dkv_engine_create(const dkv_config* config, dkv_engine** out);

/* Closes if need be and frees. NULL is allowed. */
DKV_API void dkv_engine_destroy(dkv_engine* engine);

/* Queues all groups or none. Ticket of group g is *first_ticket + g; tickets are > 0, never reused.
 * Groups of one lane run and end in the order of submission, those with DKV_EAGER in one of their
 * own. A submission that is eager throughout may fill half of the queue. */
DKV_API dkv_status dkv_submit(dkv_engine* engine, const dkv_submission* submission,
                              int64_t* first_ticket);

/* The batch of `turn` and all before have ended, as the host has seen. A lower turn than before
 * changes nothing. */
DKV_API dkv_status dkv_mark(dkv_engine* engine, int64_t turn);

/* The work of `stream` so far is the batch of `turn` and of all before, or is ordered behind them:
 * copies may be put into the lanes' streams now and wait for it on the GPU. (Eager ones wait in
 * their queue.) `stream` is the backend's stream handle. DKV_BUSY: too many turns on their way,
 * nothing recorded; the next mark covers it. DKV_UNSUPPORTED for a backend without streams,
 * DKV_INVALID for the legacy default stream and for one that a graph is being captured from. */
DKV_API dkv_status dkv_mark_stream(dkv_engine* engine, int64_t turn, uintptr_t stream);

/* Later work of `stream` starts behind the ticket's copies. DKV_BUSY: they are not all in the
 * lane's stream yet, nothing waits. DKV_INVALID also for a ticket that failed or was cancelled; one
 * that dkv_poll has told costs nothing. `flags` of dkv_wait_flag; refusals as dkv_mark_stream. */
DKV_API dkv_status dkv_stream_wait(dkv_engine* engine, int64_t ticket, uintptr_t stream,
                                   uint32_t flags);

/* Nobody wants the group any more; dkv_poll tells it as DKV_CANCELLED in its place in the order.
 * One that has not started copies nothing and its slots are free at once. Copies in the air cannot
 * be called back: until they are told, source and target stay in use. No effect on a group that
 * was told. */
DKV_API dkv_status dkv_cancel(dkv_engine* engine, int64_t ticket);

/* Writes up to `capacity` ended groups, in order within a direction and urgency. Never waits. After
 * a close it still tells of every group that was not told before. */
DKV_API dkv_status dkv_poll(dkv_engine* engine, int64_t* tickets, uint8_t* outcomes,
                            uint64_t capacity, uint64_t* count);

/* Waits until a group has ended that dkv_poll has not told, or nothing is in the queues, or
 * timeout_ns is over. *landed: whether there is one. */
DKV_API dkv_status dkv_wait(dkv_engine* engine, int64_t timeout_ns, int* landed);

/* Declares a lane dead, e.g. when its device is lost: its queued groups fail, submits are refused.
 */
DKV_API dkv_status dkv_poison(dkv_engine* engine, uint32_t direction);

DKV_API dkv_status dkv_get_stats(const dkv_engine* engine, uint32_t direction, dkv_stats* stats);

/* Stops both lanes after the slice in hand; all that is not ended is cancelled. Idempotent. */
DKV_API dkv_status dkv_close(dkv_engine* engine);

/* What one thread of this machine copies, in bytes/s: a few milliseconds of work. */
DKV_API dkv_status dkv_measure_copy(double* bytes_per_s);

#ifdef __cplusplus
}
#endif

#endif /* DUPLEXKV_DUPLEXKV_H_ */

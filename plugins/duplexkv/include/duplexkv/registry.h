/* Engines by name, for code of the same process that is handed no pointer: the TensorRT plugins
 * know the name of their engine from a field of the network.
 *
 * A berth is the place of one name. It is made when the name is first asked for and stays until the
 * process ends, so whoever holds one calls through it without a lock, whether an engine lies there
 * or not. The table of berths is one per process because this library is: link the shared
 * libduplexkv, never two copies of its objects.
 *
 * A step is what the host says before it gives a batch to the compute stream: its turn, and the
 * copies it must see. The thread that calls dkv_berth_step is the one that enqueues the batch.
 *
 * Threads: anything from any thread. dkv_berth_wait, _mark, _rotate and _refused take no lock,
 * allocate nothing and do not wait for the device or for another thread, as far as the port does
 * not.
 */
#ifndef DUPLEXKV_REGISTRY_H_
#define DUPLEXKV_REGISTRY_H_

#include "duplexkv/duplexkv.h"

#define DKV_KEY_BYTES_MAX 63   /* of a name, without its end */
#define DKV_BERTHS_MAX 256     /* of a process */
#define DKV_STEP_GROUPS_MAX 64 /* tickets of a step */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dkv_berth dkv_berth;

/* Copies decided on the device: row i of `plan` is (device block, host slot, bytes from the start
 * of both; 0: all). Rows from *count or segments_max on are not read; one with an id outside its
 * pool or more bytes than a block is skipped and counted (dkv_berth_refused). All three pointers
 * are the device's, read when the stream gets there; a graph reads them at each replay.
 *
 * No engine's books know of these copies. The caller sees to it that no two rows write the same
 * block or slot, that none of them is in a group from its submit until it is polled, and that a
 * slot is given to another stream or to the host only behind this one's work. */
typedef struct dkv_rotation {
  uint32_t struct_size;
  uint32_t direction; /* dkv_direction */
  void* device_pool;  /* as the network sees it; the port refuses a pool that is not its own */
  uint64_t device_pool_bytes;
  const int64_t* plan;  /* [segments_max, 3] */
  const int32_t* count; /* [1] */
  uint32_t segments_max;
  uint32_t sms_max; /* multiprocessors the copy may take; 0: the engine's own limit */
} dkv_rotation;

/* What lies in a berth: an engine, seen from a compute stream. `stream` is a CUstream or what the
 * port takes for one. None of these may wait for the device, allocate device memory or call back
 * into this header. On a stream that is being captured, each does what holds at every replay, or
 * refuses. A lane that copies no more is DKV_POISONED from all of them. */
typedef struct dkv_port {
  uint32_t struct_size;
  uint32_t reserved;
  void* self;
  /* Later work of the stream starts behind the copies of `ticket` (0: nothing to wait for). */
  dkv_status (*wait)(void* self, int64_t ticket, void* stream);
  /* Layer `layer` of `layers` of the batch of `turn` is complete in the stream. */
  dkv_status (*mark)(void* self, int64_t turn, uint32_t layer, uint32_t layers, void* stream);
  /* NULL: DKV_UNSUPPORTED. */
  dkv_status (*rotate)(void* self, const dkv_rotation* rotation, void* stream);
  /* Rows of all plans so far that were skipped, of one dkv_direction. NULL: DKV_UNSUPPORTED. */
  dkv_status (*refused)(void* self, uint32_t direction, uint64_t* rows);
} dkv_port;

/* The berth of `key` (1..DKV_KEY_BYTES_MAX bytes), made if need be. */
DKV_API dkv_status dkv_engine_lookup(const char* key, dkv_berth** out);

/* Lays a port into the berth of `key`; its struct is read before return. DKV_BUSY while another one
 * lies there. */
DKV_API dkv_status dkv_port_publish(const char* key, const dkv_port* port);

/* The same for an engine of this library; dkv_engine_destroy takes it out. DKV_UNSUPPORTED for a
 * backend without streams. Of its marks only the last layer's is one. While a graph is captured a
 * wait stands for all copies in that are in the lane's stream at each launch, and a mark for
 * nothing: call dkv_mark_stream behind the launch. A wait that finds its copies not yet in the
 * lane's stream is DKV_BUSY. It rotates where the build has the copy kernels, the GPU can run them
 * and both pools are block-first; streams and graphs that carry a rotation end before the engine is
 * destroyed. */
DKV_API dkv_status dkv_engine_publish(const char* key, dkv_engine* engine);

/* Empties the berth and returns when nobody is inside the port any more. An empty one is fine. */
DKV_API dkv_status dkv_engine_withdraw(const char* key);

/* What holds for the calls that follow: tickets[g] is the last copy that group g of layers must
 * see, 0 none. At most DKV_STEP_GROUPS_MAX. */
DKV_API dkv_status dkv_berth_step(dkv_berth* berth, int64_t turn, const int64_t* tickets,
                                  uint32_t count);

/* DKV_ABSENT without an engine, also of all below. */
DKV_API dkv_status dkv_berth_wait(dkv_berth* berth, uint32_t group, void* stream);

/* Waits for a ticket that the network itself was given instead of the step's. */
DKV_API dkv_status dkv_berth_wait_ticket(dkv_berth* berth, int64_t ticket, void* stream);

DKV_API dkv_status dkv_berth_mark(dkv_berth* berth, uint32_t layer, uint32_t layers, void* stream);

DKV_API dkv_status dkv_berth_rotate(dkv_berth* berth, const dkv_rotation* rotation, void* stream);

/* How many rows of plans were skipped since the engine was made, of one dkv_direction. Whole for
 * rotations whose stream has been seen to end; asks the device nothing. */
DKV_API dkv_status dkv_berth_refused(dkv_berth* berth, uint32_t direction, uint64_t* rows);

#ifdef __cplusplus
}
#endif

#endif /* DUPLEXKV_REGISTRY_H_ */

/* What DuplexKV knows of CUDA beside its engines: the GPU, and page-locked memory for the host
 * tier.
 *
 * Without a CUDA driver, or with one older than CUDA 12.0, everything here is DKV_NO_DEVICE. The
 * conventions are those of duplexkv.h.
 */
#ifndef DUPLEXKV_CUDA_H_
#define DUPLEXKV_CUDA_H_

#include "duplexkv/duplexkv.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dkv_cuda_info {
  uint32_t struct_size;
  int32_t capability;     /* 10 * major + minor */
  int32_t sms;            /* multiprocessors */
  int32_t driver_version; /* 1000 * major + 10 * minor */
  int32_t host_node;      /* of the host, nearest to the GPU; -1: not known */
  uint32_t kernels;       /* whether this build has the copy kernels */
  char name[128];
  char uuid[40];
} dkv_cuda_info;

DKV_API dkv_status dkv_cuda_get_info(int32_t device, dkv_cuda_info* info);

typedef struct dkv_host_config {
  uint32_t struct_size;
  int32_t cuda_device;
  uint64_t bytes;
  uint64_t step_bytes; /* 0: 2 GiB; at most 64 GiB. Small steps hold the driver's lock shortly */
  int32_t node;        /* of the host; -1: the GPU's. One without CPUs is refused */
  uint32_t reserved;
} dkv_host_config;

typedef enum dkv_host_kind {
  DKV_HOST_NODE_MEMORY = 0, /* made by the driver on the node */
  DKV_HOST_REGISTERED = 1,  /* the system's, bound to the node, registered step by step */
  DKV_HOST_ALLOCATED = 2    /* the driver's, in one piece */
} dkv_host_kind;

typedef struct dkv_host_info {
  uint32_t struct_size;
  uint32_t kind;        /* dkv_host_kind */
  uint64_t bytes;       /* asked for */
  uint64_t ready_bytes; /* from the base on; these may be used */
  uint64_t chunk_bytes; /* for cuda_host_chunk_bytes of an engine */
  uint32_t growing;
  uint32_t reserved;
  char note[256]; /* why it falls short or lies elsewhere; "" when all is well */
} dkv_host_info;

typedef struct dkv_host dkv_host;

/* Returns when the first step is ready; the others are made by a thread of its own. DKV_NO_MEMORY,
 * with the reasons, when not even the first can be had. */
DKV_API dkv_status dkv_host_create(const dkv_host_config* config, dkv_host** out);
DKV_API void* dkv_host_base(const dkv_host* host);
DKV_API dkv_status dkv_host_get_info(const dkv_host* host, dkv_host_info* info);
/* Returns when it grows no more; ready_bytes then says what was achieved. */
DKV_API dkv_status dkv_host_finish(dkv_host* host);
/* No engine uses it any more. NULL is allowed. */
DKV_API void dkv_host_destroy(dkv_host* host);

#ifdef __cplusplus
}
#endif

#endif /* DUPLEXKV_CUDA_H_ */

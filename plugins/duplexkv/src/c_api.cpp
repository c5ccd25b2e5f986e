// The C face: argument checks, and exceptions turned into status values.
#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <utility>

#include "arena.hpp"
#include "budget.hpp"
#include "copy.hpp"
#include "cuda_parts.hpp"
#include "engine.hpp"
#include "engine_port.hpp"
#include "error.hpp"
#include "registry.hpp"
#include "structs.hpp"

struct dkv_arena {
  std::unique_ptr<duplexkv::Arena> arena;
};

struct dkv_budget {
  std::shared_ptr<duplexkv::SharedBudget> shared;
};

struct dkv_engine {
  std::unique_ptr<duplexkv::Engine> engine;
};

namespace {

using duplexkv::fail;
using duplexkv::guarded;
using duplexkv::import_struct;
using duplexkv::Status;

// What version 0.1 had: a caller compiled with it is understood.
constexpr std::size_t kConfigBytesMin = offsetof(dkv_config, cuda_device);
constexpr std::size_t kSubmissionBytesMin = offsetof(dkv_submission, flags);

Status check_engine(const dkv_engine* engine) {
  return engine == nullptr ? fail(Status::Invalid, "engine: NULL") : Status::Ok;
}

Status check_direction(std::uint32_t direction) {
  return direction > DKV_H2D ? fail(Status::Invalid, "direction: %u is neither 0 nor 1", direction)
                             : Status::Ok;
}

constexpr std::uint32_t kHostThreadsMax = 64;

// What a pool is made of; none: block-first.
Status to_segments(const char* name, const dkv_segment* given, std::uint64_t count,
                   std::vector<duplexkv::Segment>* out) {
  if ((given == nullptr) != (count == 0)) {
    return fail(Status::Invalid, "%s_segments: NULL and a count, or none", name);
  }
  if (count > duplexkv::PoolLayout::kSegmentsMax) {
    return fail(Status::Invalid, "%s_segments: %" PRIu64 " > %zu", name, count,
                duplexkv::PoolLayout::kSegmentsMax);
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    out->push_back({.base = static_cast<std::byte*>(given[i].base),
                    .stride = given[i].stride,
                    .bytes = given[i].bytes});
  }
  return Status::Ok;
}

Status check_since_0_3(const dkv_config& config) {
  if (config.reserved != 0) return fail(Status::Unsupported, "reserved: %u", config.reserved);
  if (config.host_threads > kHostThreadsMax) {
    return fail(Status::Invalid, "host_threads: %u > %u", config.host_threads, kHostThreadsMax);
  }
  return Status::Ok;
}

Status to_engine_config(const dkv_config& given, duplexkv::EngineConfig* out) {
  duplexkv::EngineConfig& config = *out;
  Status status = check_since_0_3(given);
  if (status == Status::Ok) {
    status = to_segments("device", given.device_segments, given.device_segment_count,
                         &config.device_segments);
  }
  if (status == Status::Ok) {
    status =
        to_segments("host", given.host_segments, given.host_segment_count, &config.host_segments);
  }
  if (status != Status::Ok) return status;
  config.device = {.base = static_cast<std::byte*>(given.device_base),
                   .blocks = given.device_blocks};
  config.host = {.base = static_cast<std::byte*>(given.host_base), .blocks = given.host_blocks};
  config.block_bytes = given.block_bytes;
  config.bytes_per_s = {given.d2h_bytes_per_s, given.h2d_bytes_per_s};
  if (given.queue_groups_max != 0) config.queue_groups_max = given.queue_groups_max;
  if (given.queue_bytes_max != 0) config.queue_bytes_max = given.queue_bytes_max;
  if (given.slice_bytes_max != 0) config.slice.bytes = given.slice_bytes_max;
  if (given.slice_descriptors_max != 0) config.slice.descriptors = given.slice_descriptors_max;
  config.host_chunk_bytes = given.cuda_host_chunk_bytes;
  if (given.budget != nullptr) config.budget = given.budget->shared;
  return Status::Ok;
}

Status make_parts(const dkv_config& given, duplexkv::EngineParts* out) {
  if (given.backend == DKV_BACKEND_CUDA) return duplexkv::cuda::make_gpu(given, &out->gpu);
  duplexkv::HostBackendConfig config;
  if (given.host_threads != 0) config.threads = given.host_threads;
  if (given.host_segments == nullptr && given.host_base != nullptr &&
      given.block_bytes <= SIZE_MAX / std::max<std::uint64_t>(1, given.host_blocks)) {
    config.near = {static_cast<const std::byte*>(given.host_base),
                   given.host_blocks * given.block_bytes};
  }
  for (auto& backend : out->backends)
    backend = duplexkv::make_host_backend(config);
  return Status::Ok;
}

Status to_submission(const dkv_submission& given, duplexkv::Submission* out) {
  if (given.source == nullptr || given.target == nullptr || given.offsets == nullptr ||
      given.after == nullptr) {
    return fail(Status::Invalid, "submit: a NULL array");
  }
  if (given.group_count > given.id_count) {
    return fail(Status::Invalid, "submit: more groups than ids, some are without blocks");
  }
  out->source = {given.source, given.id_count};
  out->target = {given.target, given.id_count};
  out->offsets = {given.offsets, given.group_count + 1};
  out->after = {given.after, given.group_count};
  if (given.flags != nullptr) out->flags = {given.flags, given.group_count};
  return Status::Ok;
}

}  // namespace

extern "C" {

uint32_t dkv_version(void) {
  return DKV_VERSION_MAJOR << 16 | DKV_VERSION_MINOR;
}

const char* dkv_status_name(dkv_status status) {
  switch (status) {
    case DKV_OK:
      return "ok";
    case DKV_BUSY:
      return "busy";
    case DKV_INVALID:
      return "invalid";
    case DKV_OUT_OF_RANGE:
      return "out of range";
    case DKV_OVERLAP:
      return "overlap";
    case DKV_TOO_LARGE:
      return "too large";
    case DKV_NO_MEMORY:
      return "no memory";
    case DKV_POISONED:
      return "poisoned";
    case DKV_CLOSED:
      return "closed";
    case DKV_FORKED:
      return "forked";
    case DKV_UNSUPPORTED:
      return "unsupported";
    case DKV_INTERNAL:
      return "internal";
    case DKV_NO_DEVICE:
      return "no device";
    case DKV_ABSENT:
      return "absent";
  }
  return "unknown";
}

const char* dkv_last_error(void) {
  return duplexkv::last_error();
}

dkv_status dkv_arena_create(uint64_t blocks, uint64_t block_bytes, dkv_arena** out) {
  return guarded([&] {
    if (out == nullptr) return fail(Status::Invalid, "out: NULL");
    auto handle = std::make_unique<dkv_arena>();
    const Status status = duplexkv::Arena::create(blocks, block_bytes, &handle->arena);
    *out = status == Status::Ok ? handle.release() : nullptr;
    return status;
  });
}

void* dkv_arena_base(const dkv_arena* arena) {
  return arena->arena->base();
}

uint64_t dkv_arena_bytes(const dkv_arena* arena) {
  return arena->arena->bytes();
}

void dkv_arena_destroy(dkv_arena* arena) {
  delete arena;
}

dkv_status dkv_budget_create(double bytes_per_s, dkv_budget** out) {
  return guarded([&] {
    if (out == nullptr) return fail(Status::Invalid, "out: NULL");
    auto handle = std::make_unique<dkv_budget>();
    const Status status = duplexkv::SharedBudget::create(bytes_per_s, &handle->shared);
    *out = status == Status::Ok ? handle.release() : nullptr;
    return status;
  });
}

void dkv_budget_destroy(dkv_budget* budget) {
  delete budget;
}

dkv_status dkv_engine_create(const dkv_config* config, dkv_engine** out) {
  return guarded([&] {
    if (out == nullptr) return fail(Status::Invalid, "out: NULL");
    *out = nullptr;
    dkv_config known;
    Status status = import_struct("config", config, kConfigBytesMin, &known);
    if (status != Status::Ok) return status;
    if (known.backend > DKV_BACKEND_CUDA) {
      return fail(Status::Unsupported, "backend: %u is not in this build", known.backend);
    }
    duplexkv::EngineConfig engine_config;
    status = to_engine_config(known, &engine_config);
    if (status != Status::Ok) return status;
    auto handle = std::make_unique<dkv_engine>();
    duplexkv::EngineParts parts;
    status = make_parts(known, &parts);
    if (status != Status::Ok) return status;
    status = duplexkv::Engine::create(engine_config, std::move(parts), &handle->engine);
    if (status == Status::Ok) *out = handle.release();
    return status;
  });
}

void dkv_engine_destroy(dkv_engine* engine) {
  if (engine == nullptr) return;
  // In a fork's child there are no lanes to join and their locks may be held for ever: leave it.
  if (engine->engine->forked()) return;
  duplexkv::Registry::instance().forget(engine->engine.get());
  delete engine;
}

dkv_status dkv_engine_publish(const char* key, dkv_engine* engine) {
  return guarded([&] {
    const Status status = check_engine(engine);
    return status == Status::Ok ? duplexkv::publish_engine(key, engine->engine.get()) : status;
  });
}

dkv_status dkv_submit(dkv_engine* engine, const dkv_submission* submission, int64_t* first_ticket) {
  return guarded([&] {
    Status status = check_engine(engine);
    dkv_submission known;
    if (status == Status::Ok) {
      status = import_struct("submission", submission, kSubmissionBytesMin, &known);
    }
    if (status == Status::Ok) status = check_direction(known.direction);
    if (status == Status::Ok && first_ticket == nullptr) {
      status = fail(Status::Invalid, "first_ticket: NULL");
    }
    duplexkv::Submission groups;
    if (status == Status::Ok) status = to_submission(known, &groups);
    if (status != Status::Ok) return status;
    return engine->engine->submit(static_cast<duplexkv::Direction>(known.direction), groups,
                                  first_ticket);
  });
}

dkv_status dkv_mark(dkv_engine* engine, int64_t turn) {
  return guarded([&] {
    const Status status = check_engine(engine);
    return status == Status::Ok ? engine->engine->mark(turn) : status;
  });
}

dkv_status dkv_mark_stream(dkv_engine* engine, int64_t turn, uintptr_t stream) {
  return guarded([&] {
    const Status status = check_engine(engine);
    return status == Status::Ok ? engine->engine->mark_stream(turn, stream) : status;
  });
}

dkv_status dkv_stream_wait(dkv_engine* engine, int64_t ticket, uintptr_t stream, uint32_t flags) {
  return guarded([&] {
    const Status status = check_engine(engine);
    if (status != Status::Ok) return status;
    if ((flags & ~static_cast<uint32_t>(DKV_WAIT_EXTERNAL)) != 0) {
      return fail(Status::Unsupported, "stream_wait: flags %u, known is %d", flags,
                  DKV_WAIT_EXTERNAL);
    }
    return flags == 0 ? engine->engine->stream_wait(ticket, stream)
                      : engine->engine->graph_wait(stream);
  });
}

dkv_status dkv_cancel(dkv_engine* engine, int64_t ticket) {
  return guarded([&] {
    const Status status = check_engine(engine);
    return status == Status::Ok ? engine->engine->cancel(ticket) : status;
  });
}

dkv_status dkv_poll(dkv_engine* engine, int64_t* tickets, uint8_t* outcomes, uint64_t capacity,
                    uint64_t* count) {
  return guarded([&] {
    const Status status = check_engine(engine);
    if (status != Status::Ok) return status;
    if (tickets == nullptr || outcomes == nullptr || count == nullptr) {
      return fail(Status::Invalid, "poll: a NULL array");
    }
    std::size_t ended = 0;
    const Status polled = engine->engine->poll({tickets, capacity}, {outcomes, capacity}, &ended);
    *count = ended;
    return polled;
  });
}

dkv_status dkv_wait(dkv_engine* engine, int64_t timeout_ns, int* landed) {
  return guarded([&] {
    const Status status = check_engine(engine);
    if (status != Status::Ok) return status;
    if (landed == nullptr) return fail(Status::Invalid, "landed: NULL");
    bool any = false;
    const Status waited = engine->engine->wait(std::chrono::nanoseconds(timeout_ns), &any);
    *landed = any ? 1 : 0;
    return waited;
  });
}

dkv_status dkv_poison(dkv_engine* engine, uint32_t direction) {
  return guarded([&] {
    Status status = check_engine(engine);
    if (status == Status::Ok) status = check_direction(direction);
    if (status != Status::Ok) return status;
    return engine->engine->poison(static_cast<duplexkv::Direction>(direction));
  });
}

dkv_status dkv_get_stats(const dkv_engine* engine, uint32_t direction, dkv_stats* stats) {
  return guarded([&] {
    Status status = check_engine(engine);
    if (status == Status::Ok) status = check_direction(direction);
    if (status != Status::Ok) return status;
    dkv_stats filled{};
    status = engine->engine->stats(static_cast<duplexkv::Direction>(direction), &filled);
    if (status != Status::Ok) return status;
    return duplexkv::export_struct("stats", filled, stats);
  });
}

dkv_status dkv_close(dkv_engine* engine) {
  return guarded([&] {
    const Status status = check_engine(engine);
    return status == Status::Ok ? engine->engine->close() : status;
  });
}

dkv_status dkv_measure_copy(double* bytes_per_s) {
  return guarded([&] {
    if (bytes_per_s == nullptr) return fail(Status::Invalid, "bytes_per_s: NULL");
    *bytes_per_s = duplexkv::measure_copy();
    return Status::Ok;
  });
}

}  // extern "C"

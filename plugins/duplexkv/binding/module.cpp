// The Python face of DuplexKV: arrays in, tickets out. Thin: every rule lives behind the C header.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "duplexkv/cuda.h"
#include "duplexkv/duplexkv.h"
#include "duplexkv/registry.h"

namespace nb = nanobind;

namespace {

using Pool = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using DevicePool = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig>;  // of any device
// Of each block of a pool some bytes, one behind the other; blocks may lie apart.
using Part = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Ids = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Longs = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TicketsOut = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutcomesOut = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using PoolArray = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>, nb::c_contig>;

// A lane or an engine that can copy no more; becomes the Python exception LinkError.
struct LinkError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void require(dkv_status status) {
  if (status == DKV_OK) return;
  switch (status) {
    case DKV_INVALID:
    case DKV_OUT_OF_RANGE:
    case DKV_OVERLAP:
    case DKV_TOO_LARGE:
      throw nb::value_error(dkv_last_error());
    case DKV_NO_MEMORY:
      PyErr_SetString(PyExc_MemoryError, dkv_last_error());
      throw nb::python_error();
    default:
      throw LinkError(dkv_last_error());
  }
}

// What an engine over CUDA is asked for; see dkv_config.
struct CudaChoice {
  std::int32_t device;
  std::uint32_t route;
  std::uint32_t batch;
  std::uint32_t sms_max;
  std::uint64_t host_chunk_bytes;
  std::optional<std::string> routes_file;

  void apply(dkv_config* config) const {
    config->backend = DKV_BACKEND_CUDA;
    config->cuda_device = device;
    config->cuda_route = route;
    config->cuda_batch = batch;
    config->cuda_sms_max = sms_max;
    config->cuda_host_chunk_bytes = host_chunk_bytes;
    config->cuda_routes_file = routes_file ? routes_file->c_str() : nullptr;
  }
};

// Page-locked memory that grows; arrays over it keep it alive.
class HostMemory {
 public:
  HostMemory(std::int32_t device, std::uint64_t bytes, std::uint64_t step_bytes,
             std::int32_t node) {
    const dkv_host_config config{.struct_size = sizeof(dkv_host_config),
                                 .cuda_device = device,
                                 .bytes = bytes,
                                 .step_bytes = step_bytes,
                                 .node = node,
                                 .reserved = 0};
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_host_create(&config, &host_);
    }
    require(status);
  }
  ~HostMemory() { dkv_host_destroy(host_); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  nb::dict info() const {
    dkv_host_info info{};
    info.struct_size = sizeof(info);
    require(dkv_host_get_info(host_, &info));
    nb::dict out;
    out["kind"] = info.kind;
    out["bytes"] = info.bytes;
    out["ready_bytes"] = info.ready_bytes;
    out["chunk_bytes"] = info.chunk_bytes;
    out["growing"] = info.growing != 0;
    out["note"] = static_cast<const char*>(info.note);
    return out;
  }

  void finish() {
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_host_finish(host_);
    }
    require(status);
  }

  [[nodiscard]] void* base() const { return dkv_host_base(host_); }

 private:
  dkv_host* host_ = nullptr;
};

// [blocks, block_bytes] from the base on. The caller has looked at ready_bytes.
PoolArray pool_of(nb::handle_t<HostMemory> memory, std::uint64_t blocks,
                  std::uint64_t block_bytes) {
  return PoolArray(nb::cast<HostMemory&>(memory).base(), {blocks, block_bytes}, memory);
}

nb::dict cuda_info(std::int32_t device) {
  dkv_cuda_info info{};
  info.struct_size = sizeof(info);
  require(dkv_cuda_get_info(device, &info));
  nb::dict out;
  out["name"] = static_cast<const char*>(info.name);
  out["uuid"] = static_cast<const char*>(info.uuid);
  out["capability"] = info.capability;
  out["sms"] = info.sms;
  out["driver_version"] = info.driver_version;
  out["host_node"] = info.host_node;
  out["kernels"] = info.kernels != 0;
  return out;
}

// The place of one name; see registry.h.
class Berth {
 public:
  explicit Berth(std::string key) : key_(std::move(key)) {
    require(dkv_engine_lookup(key_.c_str(), &berth_));
  }
  void step(std::int64_t turn, const Longs& tickets) {
    require(dkv_berth_step(berth_, turn, tickets.data(), count_of(tickets)));
  }
  void withdraw() {
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_engine_withdraw(key_.c_str());
    }
    require(status);
  }

 private:
  static std::uint32_t count_of(const Longs& tickets) {
    if (tickets.shape(0) > DKV_STEP_GROUPS_MAX) throw nb::value_error("step: more than 64 tickets");
    return static_cast<std::uint32_t>(tickets.shape(0));
  }

  std::string key_;
  dkv_berth* berth_ = nullptr;
};

// A rate that engines share; they keep it.
class Budget {
 public:
  explicit Budget(double bytes_per_s) { require(dkv_budget_create(bytes_per_s, &budget_)); }
  ~Budget() { dkv_budget_destroy(budget_); }
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  [[nodiscard]] dkv_budget* get() const { return budget_; }

 private:
  dkv_budget* budget_ = nullptr;
};

// A pool as the segments that its parts are; all of as many blocks.
std::vector<dkv_segment> segments_of(const std::vector<Part>& parts) {
  std::vector<dkv_segment> segments;
  for (const Part& part : parts) {
    if (part.shape(0) != parts.front().shape(0)) {
      throw nb::value_error("pool parts: they differ in blocks (first dimension)");
    }
    if (part.stride(1) != 1 || part.stride(0) < 0) {
      throw nb::value_error("pool parts: bytes of a block do not follow each other");
    }
    segments.push_back({.base = part.data(),
                        .stride = static_cast<std::uint64_t>(part.stride(0)),
                        .bytes = part.shape(1)});
  }
  return segments;
}

class Engine {
 public:
  // Pools in parts: laid out in another way than block-first.
  Engine(const std::vector<Part>& device, const std::vector<Part>& host, double d2h_bytes_per_s,
         double h2d_bytes_per_s, std::uint32_t queue_groups_max, std::uint64_t queue_bytes_max,
         std::uint64_t slice_bytes_max, std::uint32_t host_threads, const Budget* budget)
      : parts_{device, host} {
    if (device.empty() || host.empty()) throw nb::value_error("pool parts: none");
    const std::vector<dkv_segment> device_segments = segments_of(device);
    const std::vector<dkv_segment> host_segments = segments_of(host);
    dkv_config config = config_of(d2h_bytes_per_s, h2d_bytes_per_s, queue_groups_max,
                                  queue_bytes_max, slice_bytes_max);
    config.device_blocks = device.front().shape(0);
    config.host_blocks = host.front().shape(0);
    for (const dkv_segment& segment : device_segments)
      config.block_bytes += segment.bytes;
    config.device_segments = device_segments.data();
    config.device_segment_count = device_segments.size();
    config.host_segments = host_segments.data();
    config.host_segment_count = host_segments.size();
    config.host_threads = host_threads;
    config.budget = budget == nullptr ? nullptr : budget->get();
    require(dkv_engine_create(&config, &engine_));
  }

  Engine(DevicePool device, Pool host, double d2h_bytes_per_s, double h2d_bytes_per_s,
         std::uint32_t queue_groups_max, std::uint64_t queue_bytes_max,
         std::uint64_t slice_bytes_max, const std::optional<CudaChoice>& cuda,
         std::uint32_t host_threads, const Budget* budget)
      : device_(std::move(device)), host_(std::move(host)) {
    if (device_->shape(1) != host_->shape(1)) {
      throw nb::value_error("pools: device and host differ in block_bytes (second dimension)");
    }
    dkv_config config = config_of(d2h_bytes_per_s, h2d_bytes_per_s, queue_groups_max,
                                  queue_bytes_max, slice_bytes_max);
    config.device_base = device_->data();
    config.device_blocks = device_->shape(0);
    config.host_base = host_->data();
    config.host_blocks = host_->shape(0);
    config.block_bytes = device_->shape(1);
    config.host_threads = host_threads;
    config.budget = budget == nullptr ? nullptr : budget->get();
    if (cuda) {
      cuda->apply(&config);
    } else if (device_->device_type() != nb::device::cpu::value) {
      throw nb::value_error("device pool: memory of a GPU needs the CUDA backend");
    }
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;  // a GPU is tried and measured
      status = dkv_engine_create(&config, &engine_);
    }
    require(status);
  }
  // The lanes have stopped before the pools may go.
  ~Engine() { dkv_engine_destroy(engine_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::optional<std::int64_t> submit(std::uint32_t direction, const Ids& source, const Ids& target,
                                     const Longs& offsets, const Longs& after,
                                     const std::optional<Bytes>& flags) {
    if (source.shape(0) != target.shape(0)) {
      throw nb::value_error("submit: source and target differ in length");
    }
    if (offsets.shape(0) != after.shape(0) + 1) {
      throw nb::value_error("submit: offsets must be one longer than after");
    }
    if (flags && flags->shape(0) != after.shape(0)) {
      throw nb::value_error("submit: flags and after differ in length");
    }
    const dkv_submission submission{.struct_size = sizeof(dkv_submission),
                                    .direction = direction,
                                    .source = source.data(),
                                    .target = target.data(),
                                    .id_count = source.shape(0),
                                    .offsets = offsets.data(),
                                    .after = after.data(),
                                    .group_count = after.shape(0),
                                    .flags = flags ? flags->data() : nullptr};
    std::int64_t first_ticket = 0;
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_submit(engine_, &submission, &first_ticket);
    }
    if (status == DKV_BUSY) return std::nullopt;
    require(status);
    return first_ticket;
  }

  void publish(const std::string& key) { require(dkv_engine_publish(key.c_str(), engine_)); }

  void mark(std::int64_t turn) {
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_mark(engine_, turn);
    }
    require(status);
  }

  // False: too many turns on their way, nothing was recorded.
  bool mark_stream(std::int64_t turn, std::uintptr_t stream) {
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_mark_stream(engine_, turn, stream);
    }
    if (status == DKV_BUSY) return false;
    require(status);
    return true;
  }

  // False: the copies are not all in their lane's stream yet, nothing waits.
  bool stream_wait(std::int64_t ticket, std::uintptr_t stream, bool external) {
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_stream_wait(engine_, ticket, stream, external ? DKV_WAIT_EXTERNAL : 0);
    }
    if (status == DKV_BUSY) return false;
    require(status);
    return true;
  }

  std::uint64_t poll(const TicketsOut& tickets, const OutcomesOut& outcomes) {
    if (tickets.shape(0) != outcomes.shape(0)) {
      throw nb::value_error("poll: tickets and outcomes differ in length");
    }
    std::uint64_t count = 0;
    require(dkv_poll(engine_, tickets.data(), outcomes.data(), tickets.shape(0), &count));
    return count;
  }

  bool wait(double timeout_s) {
    if (!(timeout_s >= 0)) throw nb::value_error("wait: timeout_s must be >= 0");
    constexpr double kLongestSeconds = 9e9;  // what int64 nanoseconds hold
    int landed = 0;
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_wait(
          engine_, static_cast<std::int64_t>(std::fmin(timeout_s, kLongestSeconds) * 1e9), &landed);
    }
    require(status);
    return landed != 0;
  }

  void cancel(std::int64_t ticket) { require(dkv_cancel(engine_, ticket)); }

  void poison(std::uint32_t direction) { require(dkv_poison(engine_, direction)); }

  nb::dict stats(std::uint32_t direction) const {
    dkv_stats stats{};
    stats.struct_size = sizeof(stats);
    require(dkv_get_stats(engine_, direction, &stats));
    nb::dict out;
    out["poisoned"] = stats.poisoned;
    out["bytes"] = stats.bytes;
    out["slices"] = stats.slices;
    out["descriptors"] = stats.descriptors;
    out["groups_done"] = stats.groups_done;
    out["groups_failed"] = stats.groups_failed;
    out["groups_cancelled"] = stats.groups_cancelled;
    out["busy_ns"] = stats.busy_ns;
    out["queued_groups"] = stats.queued_groups;
    out["unpolled_groups"] = stats.unpolled_groups;
    out["unpolled_bytes"] = stats.unpolled_bytes;
    return out;
  }

  void close() {
    dkv_status status = DKV_OK;
    {
      const nb::gil_scoped_release unlocked;
      status = dkv_close(engine_);
    }
    require(status);
  }

 private:
  static dkv_config config_of(double d2h_bytes_per_s, double h2d_bytes_per_s,
                              std::uint32_t queue_groups_max, std::uint64_t queue_bytes_max,
                              std::uint64_t slice_bytes_max) {
    dkv_config config{};
    config.struct_size = sizeof(config);
    config.backend = DKV_BACKEND_HOST;
    config.d2h_bytes_per_s = d2h_bytes_per_s;
    config.h2d_bytes_per_s = h2d_bytes_per_s;
    config.queue_groups_max = queue_groups_max;
    config.queue_bytes_max = queue_bytes_max;
    config.slice_bytes_max = slice_bytes_max;
    return config;
  }

  // What the lanes copy stays alive.
  std::optional<DevicePool> device_;
  std::optional<Pool> host_;
  std::array<std::vector<Part>, 2> parts_;
  dkv_engine* engine_ = nullptr;
};

PoolArray allocate(std::uint64_t blocks, std::uint64_t block_bytes) {
  dkv_arena* arena = nullptr;
  require(dkv_arena_create(blocks, block_bytes, &arena));
  const nb::capsule owner(
      arena, [](void* held) noexcept { dkv_arena_destroy(static_cast<dkv_arena*>(held)); });
  return PoolArray(dkv_arena_base(arena), {blocks, block_bytes}, owner);
}

double measure_copy() {
  double bytes_per_s = 0;
  dkv_status status = DKV_OK;
  {
    const nb::gil_scoped_release unlocked;
    status = dkv_measure_copy(&bytes_per_s);
  }
  require(status);
  return bytes_per_s;
}

}  // namespace

NB_MODULE(_duplexkv, module) {
  // Two objects of one key are one berth.
  nb::class_<Berth>(module, "Berth")
      .def(nb::init<const std::string&>(), nb::arg("key"))
      .def("step", &Berth::step, nb::arg("turn"), nb::arg("tickets").noconvert())
      .def("withdraw", &Berth::withdraw);
#ifdef NDEBUG
  // A daemon thread that is still in wait() when the interpreter ends holds its engine for ever.
  // That is the program's business; a library prints nothing about it.
  nb::set_leak_warnings(false);
#endif
  module.attr("D2H") = static_cast<int>(DKV_D2H);
  module.attr("H2D") = static_cast<int>(DKV_H2D);
  module.attr("EAGER") = static_cast<int>(DKV_EAGER);
  module.attr("DONE") = static_cast<int>(DKV_DONE);
  module.attr("FAILED") = static_cast<int>(DKV_FAILED);
  module.attr("CANCELLED") = static_cast<int>(DKV_CANCELLED);
  const nb::exception<LinkError> link_error(module, "LinkError", PyExc_RuntimeError);
  module.def("version", &dkv_version);
  module.def("allocate", &allocate, nb::arg("blocks"), nb::arg("block_bytes"));
  module.def("measure_copy", &measure_copy);
  module.def("cuda_info", &cuda_info, nb::arg("device"));
  nb::class_<HostMemory>(module, "HostMemory")
      .def(nb::init<std::int32_t, std::uint64_t, std::uint64_t, std::int32_t>(), nb::kw_only(),
           nb::arg("device"), nb::arg("bytes"), nb::arg("step_bytes"), nb::arg("node"))
      .def("info", &HostMemory::info)
      .def("finish", &HostMemory::finish)
      .def("pool", &pool_of, nb::arg("blocks"), nb::arg("block_bytes"));
  nb::class_<CudaChoice>(module, "CudaChoice")
      .def(
          "__init__",
          [](CudaChoice* self, std::int32_t device, std::uint32_t route, std::uint32_t batch,
             std::uint32_t sms_max, std::uint64_t host_chunk_bytes,
             std::optional<std::string> routes_file) {
            new (self)
                CudaChoice{device, route, batch, sms_max, host_chunk_bytes, std::move(routes_file)};
          },
          nb::kw_only(), nb::arg("device"), nb::arg("route"), nb::arg("batch"), nb::arg("sms_max"),
          nb::arg("host_chunk_bytes"), nb::arg("routes_file").none());
  nb::class_<Budget>(module, "Budget").def(nb::init<double>(), nb::arg("bytes_per_s"));
  nb::class_<Engine>(module, "Engine")
      .def(nb::init<DevicePool, Pool, double, double, std::uint32_t, std::uint64_t, std::uint64_t,
                    const std::optional<CudaChoice>&, std::uint32_t, const Budget*>(),
           nb::arg("device").noconvert(), nb::arg("host").noconvert(), nb::kw_only(),
           nb::arg("d2h_bytes_per_s"), nb::arg("h2d_bytes_per_s"), nb::arg("queue_groups_max"),
           nb::arg("queue_bytes_max"), nb::arg("slice_bytes_max"),
           nb::arg("cuda").none() = nb::none(), nb::arg("host_threads") = 1,
           nb::arg("budget").none() = nb::none())
      .def(nb::init<const std::vector<Part>&, const std::vector<Part>&, double, double,
                    std::uint32_t, std::uint64_t, std::uint64_t, std::uint32_t, const Budget*>(),
           nb::kw_only(), nb::arg("device_parts").noconvert(), nb::arg("host_parts").noconvert(),
           nb::arg("d2h_bytes_per_s"), nb::arg("h2d_bytes_per_s"), nb::arg("queue_groups_max"),
           nb::arg("queue_bytes_max"), nb::arg("slice_bytes_max"), nb::arg("host_threads") = 1,
           nb::arg("budget").none() = nb::none())
      .def("submit", &Engine::submit, nb::arg("direction"), nb::arg("source").noconvert(),
           nb::arg("target").noconvert(), nb::arg("offsets").noconvert(),
           nb::arg("after").noconvert(), nb::arg("flags").noconvert().none() = nb::none())
      .def("publish", &Engine::publish, nb::arg("key"))
      .def("mark", &Engine::mark, nb::arg("turn"))
      .def("mark_stream", &Engine::mark_stream, nb::arg("turn"), nb::arg("stream"))
      .def("stream_wait", &Engine::stream_wait, nb::arg("ticket"), nb::arg("stream"),
           nb::arg("external"))
      .def("poll", &Engine::poll, nb::arg("tickets").noconvert(), nb::arg("outcomes").noconvert())
      .def("wait", &Engine::wait, nb::arg("timeout_s"))
      .def("cancel", &Engine::cancel, nb::arg("ticket"))
      .def("poison", &Engine::poison, nb::arg("direction"))
      .def("stats", &Engine::stats, nb::arg("direction"))
      .def("close", &Engine::close);
}

#include "engine.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "calls.hpp"
#include "duplexkv/registry.h"
#include "memory.hpp"

namespace duplexkv::binding {
namespace {

using Pool = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using DevicePool = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig>;  // of any device
// Of each block of a pool some bytes, one behind the other; blocks may lie apart.
using Part = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using DevicePart = nb::ndarray<std::uint8_t, nb::ndim<2>>;  // of any device
using Ids = Array<const std::int32_t>;
using Longs = Array<const std::int64_t>;
using Bytes = Array<const std::uint8_t>;

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
template <typename AnyPart>
std::vector<dkv_segment> segments_of(const std::vector<AnyPart>& parts) {
  if (parts.empty()) throw nb::value_error("pool parts: none");
  std::vector<dkv_segment> segments;
  for (const AnyPart& part : parts) {
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

template <typename Array>
void require_host_without(const std::optional<CudaChoice>& cuda, const Array& pool) {
  if (!cuda && pool.device_type() != nb::device::cpu::value) {
    throw nb::value_error("device pool: memory of a GPU needs the CUDA backend");
  }
}

class Engine {
 public:
  // Pools in parts: laid out in another way than block-first.
  Engine(const std::vector<DevicePart>& device, const std::vector<Part>& host,
         double d2h_bytes_per_s, double h2d_bytes_per_s, std::uint32_t queue_groups_max,
         std::uint64_t queue_bytes_max, std::uint64_t slice_bytes_max,
         const std::optional<CudaChoice>& cuda, std::uint32_t host_threads, const Budget* budget)
      : device_parts_(device), host_parts_(host) {
    const std::vector<dkv_segment> device_segments = segments_of(device);
    const std::vector<dkv_segment> host_segments = segments_of(host);
    for (const DevicePart& part : device)
      require_host_without(cuda, part);
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
    // Page-locked memory begins where its first part does.
    config.host_base =
        std::min_element(host_segments.begin(), host_segments.end(),
                         [](const dkv_segment& a, const dkv_segment& b) { return a.base < b.base; })
            ->base;
    create(&config, cuda, host_threads, budget);
  }

  Engine(const DevicePool& device, const Pool& host, double d2h_bytes_per_s, double h2d_bytes_per_s,
         std::uint32_t queue_groups_max, std::uint64_t queue_bytes_max,
         std::uint64_t slice_bytes_max, const std::optional<CudaChoice>& cuda,
         std::uint32_t host_threads, const Budget* budget)
      : device_parts_{DevicePart(device)}, host_parts_{Part(host)} {
    if (device.shape(1) != host.shape(1)) {
      throw nb::value_error("pools: device and host differ in block_bytes (second dimension)");
    }
    require_host_without(cuda, device);
    dkv_config config = config_of(d2h_bytes_per_s, h2d_bytes_per_s, queue_groups_max,
                                  queue_bytes_max, slice_bytes_max);
    config.device_base = device.data();
    config.device_blocks = device.shape(0);
    config.host_base = host.data();
    config.host_blocks = host.shape(0);
    config.block_bytes = device.shape(1);
    create(&config, cuda, host_threads, budget);
  }
  // The lanes have stopped before the pools may go.
  ~Engine() { dkv_engine_destroy(engine_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::optional<std::int64_t> submit(std::uint32_t direction, const Ids& source, const Ids& target,
                                     const Longs& offsets, const Longs& after,
                                     const std::optional<Bytes>& flags) {
    if (offsets.size() != after.size() + 1) {
      throw nb::value_error("submit: offsets must be one longer than after");
    }
    if (flags && flags->size() != after.size()) {
      throw nb::value_error("submit: flags and after differ in length");
    }
    return submit_groups(direction, source, target,
                         {.offsets = offsets.data(),
                          .after = after.data(),
                          .count = after.size(),
                          .flags = flags ? flags->data() : nullptr});
  }

  std::optional<std::int64_t> submit_group(std::uint32_t direction, const Ids& source,
                                           const Ids& target, std::int64_t after,
                                           std::uint8_t flags) {
    const std::array<std::int64_t, 2> offsets{0, static_cast<std::int64_t>(source.size())};
    return submit_groups(direction, source, target,
                         {.offsets = offsets.data(), .after = &after, .count = 1, .flags = &flags});
  }

  void publish(const std::string& key) { require(dkv_engine_publish(key.c_str(), engine_)); }

  void mark(std::int64_t turn) {
    require(without_gil([&] { return dkv_mark(engine_, turn); }));
  }

  // False: too many turns on their way, nothing was recorded.
  bool mark_stream(std::int64_t turn, std::uintptr_t stream) {
    return unless_busy(without_gil([&] { return dkv_mark_stream(engine_, turn, stream); }));
  }

  // False: the copies are not all in their lane's stream yet, nothing waits.
  bool stream_wait(std::int64_t ticket, std::uintptr_t stream, bool external) {
    const std::uint32_t flags = external ? DKV_WAIT_EXTERNAL : 0;
    return unless_busy(
        without_gil([&] { return dkv_stream_wait(engine_, ticket, stream, flags); }));
  }

  std::uint64_t poll(const Array<std::int64_t>& tickets, const Array<std::uint8_t>& outcomes) {
    if (tickets.size() != outcomes.size()) {
      throw nb::value_error("poll: tickets and outcomes differ in length");
    }
    std::uint64_t count = 0;
    require(dkv_poll(engine_, tickets.data(), outcomes.data(), tickets.size(), &count));
    return count;
  }

  bool wait(double timeout_s) { return wait_for_landing(engine_, timeout_s); }

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
    require(without_gil([&] { return dkv_close(engine_); }));
  }

 private:
  struct Groups {
    const std::int64_t* offsets;
    const std::int64_t* after;
    std::uint64_t count;
    const std::uint8_t* flags;
  };

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

  void create(dkv_config* config, const std::optional<CudaChoice>& cuda, std::uint32_t host_threads,
              const Budget* budget) {
    config->host_threads = host_threads;
    config->budget = budget == nullptr ? nullptr : budget->get();
    if (cuda) cuda->apply(config);
    require(without_gil([&] { return dkv_engine_create(config, &engine_); }));
  }

  std::optional<std::int64_t> submit_groups(std::uint32_t direction, const Ids& source,
                                            const Ids& target, const Groups& groups) {
    if (source.size() != target.size()) {
      throw nb::value_error("submit: source and target differ in length");
    }
    const dkv_submission submission{.struct_size = sizeof(dkv_submission),
                                    .direction = direction,
                                    .source = source.data(),
                                    .target = target.data(),
                                    .id_count = source.size(),
                                    .offsets = groups.offsets,
                                    .after = groups.after,
                                    .group_count = groups.count,
                                    .flags = groups.flags};
    std::int64_t first_ticket = 0;
    const bool taken =
        unless_busy(without_gil([&] { return dkv_submit(engine_, &submission, &first_ticket); }));
    return taken ? std::optional(first_ticket) : std::nullopt;
  }

  static bool unless_busy(dkv_status status) {
    if (status == DKV_BUSY) return false;
    require(status);
    return true;
  }

  // What the lanes copy stays alive.
  std::vector<DevicePart> device_parts_;
  std::vector<Part> host_parts_;
  dkv_engine* engine_ = nullptr;
};

// The place of one name; see registry.h.
class Berth {
 public:
  explicit Berth(std::string key) : key_(std::move(key)) {
    require(dkv_engine_lookup(key_.c_str(), &berth_));
  }
  void step(std::int64_t turn, const Longs& tickets) {
    if (tickets.size() > DKV_STEP_GROUPS_MAX) throw nb::value_error("step: more than 64 tickets");
    require(
        dkv_berth_step(berth_, turn, tickets.data(), static_cast<std::uint32_t>(tickets.size())));
  }
  std::uint64_t refused(std::uint32_t direction) {
    std::uint64_t rows = 0;
    require(dkv_berth_refused(berth_, direction, &rows));
    return rows;
  }
  void withdraw() {
    require(without_gil([&] { return dkv_engine_withdraw(key_.c_str()); }));
  }

 private:
  std::string key_;
  dkv_berth* berth_ = nullptr;
};

}  // namespace

void add_engine(nb::module_& module) {
  // Two objects of one key are one berth.
  nb::class_<Berth>(module, "Berth")
      .def(nb::init<const std::string&>(), nb::arg("key"))
      .def("step", &Berth::step, nb::arg("turn"), nb::arg("tickets"))
      .def("refused", &Berth::refused, nb::arg("direction"))
      .def("withdraw", &Berth::withdraw);
  nb::class_<Budget>(module, "Budget").def(nb::init<double>(), nb::arg("bytes_per_s"));
  nb::class_<Engine>(module, "Engine")
      .def(
          nb::init<const DevicePool&, const Pool&, double, double, std::uint32_t, std::uint64_t,
                   std::uint64_t, const std::optional<CudaChoice>&, std::uint32_t, const Budget*>(),
          nb::arg("device").noconvert(), nb::arg("host").noconvert(), nb::kw_only(),
          nb::arg("d2h_bytes_per_s"), nb::arg("h2d_bytes_per_s"), nb::arg("queue_groups_max"),
          nb::arg("queue_bytes_max"), nb::arg("slice_bytes_max"),
          nb::arg("cuda").none() = nb::none(), nb::arg("host_threads") = 1,
          nb::arg("budget").none() = nb::none())
      .def(nb::init<const std::vector<DevicePart>&, const std::vector<Part>&, double, double,
                    std::uint32_t, std::uint64_t, std::uint64_t, const std::optional<CudaChoice>&,
                    std::uint32_t, const Budget*>(),
           nb::kw_only(), nb::arg("device_parts").noconvert(), nb::arg("host_parts").noconvert(),
           nb::arg("d2h_bytes_per_s"), nb::arg("h2d_bytes_per_s"), nb::arg("queue_groups_max"),
           nb::arg("queue_bytes_max"), nb::arg("slice_bytes_max"),
           nb::arg("cuda").none() = nb::none(), nb::arg("host_threads") = 1,
           nb::arg("budget").none() = nb::none())
      .def("submit", &Engine::submit, nb::arg("direction"), nb::arg("source"), nb::arg("target"),
           nb::arg("offsets"), nb::arg("after"), nb::arg("flags").none() = nb::none())
      .def("submit_group", &Engine::submit_group, nb::arg("direction"), nb::arg("source"),
           nb::arg("target"), nb::arg("after"), nb::arg("flags"))
      .def("publish", &Engine::publish, nb::arg("key"))
      .def("mark", &Engine::mark, nb::arg("turn"))
      .def("mark_stream", &Engine::mark_stream, nb::arg("turn"), nb::arg("stream"))
      .def("stream_wait", &Engine::stream_wait, nb::arg("ticket"), nb::arg("stream"),
           nb::arg("external"))
      .def("poll", &Engine::poll, nb::arg("tickets"), nb::arg("outcomes"))
      .def("wait", &Engine::wait, nb::arg("timeout_s"))
      .def("cancel", &Engine::cancel, nb::arg("ticket"))
      .def("poison", &Engine::poison, nb::arg("direction"))
      .def("stats", &Engine::stats, nb::arg("direction"))
      .def("close", &Engine::close);
}

}  // namespace duplexkv::binding

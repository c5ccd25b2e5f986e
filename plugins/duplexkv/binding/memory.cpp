#include "memory.hpp"

#include <nanobind/stl/optional.h>

#include <utility>

#include "calls.hpp"

namespace duplexkv::binding {
namespace {

using PoolArray = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>, nb::c_contig>;

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
    require(without_gil([&] { return dkv_host_create(&config, &host_); }));
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
    require(without_gil([&] { return dkv_host_finish(host_); }));
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

PoolArray allocate(std::uint64_t blocks, std::uint64_t block_bytes) {
  dkv_arena* arena = nullptr;
  require(dkv_arena_create(blocks, block_bytes, &arena));
  const nb::capsule owner(
      arena, [](void* held) noexcept { dkv_arena_destroy(static_cast<dkv_arena*>(held)); });
  return PoolArray(dkv_arena_base(arena), {blocks, block_bytes}, owner);
}

double measure_copy() {
  double bytes_per_s = 0;
  require(without_gil([&] { return dkv_measure_copy(&bytes_per_s); }));
  return bytes_per_s;
}

}  // namespace

void CudaChoice::apply(dkv_config* config) const {
  config->backend = DKV_BACKEND_CUDA;
  config->cuda_device = device;
  config->cuda_route = route;
  config->cuda_batch = batch;
  config->cuda_sms_max = sms_max;
  config->cuda_host_chunk_bytes = host_chunk_bytes;
  config->cuda_routes_file = routes_file ? routes_file->c_str() : nullptr;
}

void add_memory(nb::module_& module) {
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
}

}  // namespace duplexkv::binding

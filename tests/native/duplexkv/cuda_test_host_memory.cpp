// Host memory in steps: which way is taken, what is told, and that whatever call fails, nothing
// stays behind.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "../check.hpp"
#include "cuda_fake.hpp"
#include "host_memory.hpp"

namespace {

using namespace duplexkv::cuda;
using duplexkv::Status;
using duplexkv_test::fake;
using duplexkv_test::fake_driver;
using duplexkv_test::reset_fake;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

int maps_alive = 0;
int bound_node = -1;
int bind_answer = 0;
int page_node = 0;
bool map_refused = false;

void* counted_map(std::size_t bytes) {
  if (map_refused) return nullptr;
  ++maps_alive;
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
void counted_unmap(void* base, std::size_t bytes) {
  --maps_alive;
  CHECK(munmap(base, bytes) == 0);
}
int counted_bind(void*, std::size_t, int node) {
  bound_node = node;
  return bind_answer;
}
int told_node(void*) {
  return page_node;
}
constexpr HostCalls kCalls{counted_map, counted_unmap, counted_bind, told_node};

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// A folder like /sys/devices/system/node: node 0 with CPUs, node 1 a GPU's memory, node 63 with.
class Nodes {
 public:
  Nodes() : folder_("/tmp/duplexkv-nodes-" + std::to_string(getpid())) {
    CHECK(mkdir(folder_.c_str(), 0700) == 0);
    add(0, "0-71");
    add(1, "");
    add(63, "72-143");
  }
  ~Nodes() {
    for (const int node : {0, 1, 63}) {
      unlink((folder_ + "/node" + std::to_string(node) + "/cpulist").c_str());
      rmdir((folder_ + "/node" + std::to_string(node)).c_str());
    }
    rmdir(folder_.c_str());
  }
  const char* folder() const { return folder_.c_str(); }

 private:
  void add(int node, const char* cpus) {
    const std::string path = folder_ + "/node" + std::to_string(node);
    CHECK(mkdir(path.c_str(), 0700) == 0);
    std::ofstream(path + "/cpulist") << cpus << "\n";
  }
  std::string folder_;
};

struct Machine {
  explicit Machine(int host_numa_memory = 1) {
    reset_fake().attributes[kHostNumaMemory] = host_numa_memory;
    maps_alive = 0;
    bound_node = -1;
    bind_answer = 0;
    page_node = 0;
    map_refused = false;
    CHECK(Device::open(&fake_driver(), 0, &device) == Status::Ok);
    config = {.device = device.get(),
              .bytes = 9 * kMiB,
              .step_bytes = 2 * kMiB,
              .node = -1,
              .nodes_folder = nodes.folder(),
              .calls = &kCalls};
  }
  Status create() { return HostMemory::create(config, &memory); }
  // What the machine itself holds is its context.
  bool nothing_left() const { return fake().alive_in_all() == 1 && maps_alive == 0; }

  Nodes nodes;
  std::unique_ptr<Device> device;
  HostMemoryConfig config;
  std::unique_ptr<HostMemory> memory;
};

void use_all(HostMemory* memory) {
  memory->finish();
  CHECK(!memory->growing() && memory->ready_bytes() == memory->bytes());
  std::memset(memory->base(), 0x3C, memory->bytes());
  CHECK(memory->base()[memory->bytes() - 1] == std::byte{0x3C});
}

void memory_of_the_node_comes_first() {
  Machine machine;
  CHECK(machine.create() == Status::Ok);
  CHECK(machine.memory->ready_bytes() >= 2 * kMiB);
  use_all(machine.memory.get());
  CHECK(machine.memory->kind() == HostKind::NodeMemory && machine.memory->note().empty());
  CHECK(machine.memory->chunk_bytes() == 2 * kMiB && fake().count["memory_create"] == 5);
  machine.memory.reset();
  CHECK(machine.nothing_left());
}

void then_registered_steps_bound_to_the_node() {
  Machine machine(0);
  CHECK(machine.create() == Status::Ok);
  use_all(machine.memory.get());
  CHECK(machine.memory->kind() == HostKind::Registered && machine.memory->note().empty());
  CHECK(bound_node == 0 && fake().count["host_register"] == 5);
  machine.memory.reset();
  CHECK(machine.nothing_left() && fake().count["host_unregister"] == 5);
}

void then_one_allocation() {
  Machine machine(0);
  map_refused = true;
  CHECK(machine.create() == Status::Ok);
  use_all(machine.memory.get());
  CHECK(machine.memory->kind() == HostKind::Allocated);
  CHECK(contains(machine.memory->note(), "the system refused"));
  CHECK(machine.memory->chunk_bytes() >= machine.memory->bytes());
  machine.memory.reset();
  CHECK(machine.nothing_left());
}

void what_falls_short_is_told_and_stays_usable() {
  Machine machine;
  fake().node_bytes = 5 * kMiB;
  CHECK(machine.create() == Status::Ok);
  machine.memory->finish();
  CHECK(machine.memory->ready_bytes() == 4 * kMiB && machine.memory->bytes() == 9 * kMiB);
  CHECK(contains(machine.memory->note(), "no further step of 2097152 bytes"));
  std::memset(machine.memory->base(), 1, machine.memory->ready_bytes());
  machine.memory.reset();
  CHECK(machine.nothing_left());
}

void a_binding_that_is_refused_or_did_nothing_is_told() {
  Machine machine(0);
  bind_answer = 1;
  page_node = 63;
  CHECK(machine.create() == Status::Ok);
  use_all(machine.memory.get());
  CHECK(contains(machine.memory->note(), "not bound to the GPU's node"));
  CHECK(contains(machine.memory->note(), "on node 63"));
}

void a_node_without_cpus_is_refused() {
  Machine machine;
  machine.config.node = 1;
  CHECK(machine.create() == Status::Invalid);
  CHECK(contains(duplexkv::last_error(), "node 1 has no CPUs"));
  machine.config.node = 7;
  CHECK(machine.create() == Status::Invalid);
  CHECK(contains(duplexkv::last_error(), "no node 7"));
  int node = 5;
  CHECK(check_node(machine.nodes.folder(), 63, &node) == Status::Ok && node == 63);
  CHECK(check_node("/nowhere/at/all", 0, &node) == Status::Ok && node == -1);
  CHECK(check_node(machine.nodes.folder(), -1, &node) == Status::Ok && node == -1);
  machine.config = {.device = machine.device.get(), .bytes = 0};
  CHECK(machine.create() == Status::Invalid);
  machine.config.bytes = kMiB;
  machine.config.step_bytes = kHostStepBytesMax + 1;
  CHECK(machine.create() == Status::Invalid);
  machine.config.step_bytes = kMiB;
  machine.config.bytes = UINT64_MAX;
  CHECK(machine.create() == Status::TooLarge);
  CHECK(machine.nothing_left());
}

// Call after call, in each way of getting memory.
void whatever_call_fails_nothing_stays_behind() {
  for (const bool node_memory : {true, false}) {
    int made = 0;
    int short_of = 0;
    for (std::int64_t number = 0; number < 80; ++number) {
      Machine machine(node_memory ? 1 : 0);
      fake().calls = 0;
      fake().fail_at = number;
      fake().fail_with = kOutOfMemory;
      if (machine.create() == Status::Ok) {
        ++made;
        machine.memory->finish();
        const std::uint64_t ready = machine.memory->ready_bytes();
        CHECK(ready > 0);
        machine.memory->base()[0] = machine.memory->base()[ready - 1] = std::byte{1};
        if (ready < machine.memory->bytes()) {
          ++short_of;
          CHECK(!machine.memory->note().empty());
        }
        fake().fail_at = -1;
        machine.memory.reset();
      }
      CHECK(machine.nothing_left());
    }
    CHECK(made > 60 && short_of >= 4);
  }
}

void no_way_at_all_is_told_with_the_reasons() {
  Machine machine(0);
  map_refused = true;
  fake().fail_name = "host_alloc";
  fake().fail_at = fake().calls = 0;
  fake().fail_with = kOutOfMemory;
  CHECK(machine.create() == Status::NoMemory);
  CHECK(contains(duplexkv::last_error(), "9437184 asked for, 0 given"));
  CHECK(machine.nothing_left());
}

void the_systems_own_calls_work() {
  const HostCalls& calls = system_host_calls();
  void* base = calls.map(4 * kMiB);
  CHECK(base != nullptr);
  calls.bind(base, 4 * kMiB, 0);  // may be refused in a container
  std::memset(base, 7, 4 * kMiB);
  CHECK(calls.node_of(base) < 1024);
  CHECK(calls.bind(base, 4 * kMiB, 1023) != 0);  // no such node, but a mask that holds it
  calls.unmap(base, 4 * kMiB);
}

}  // namespace

int main() {
  RUN(memory_of_the_node_comes_first);
  RUN(then_registered_steps_bound_to_the_node);
  RUN(then_one_allocation);
  RUN(what_falls_short_is_told_and_stays_usable);
  RUN(a_binding_that_is_refused_or_did_nothing_is_told);
  RUN(a_node_without_cpus_is_refused);
  RUN(whatever_call_fails_nothing_stays_behind);
  RUN(no_way_at_all_is_told_with_the_reasons);
  RUN(the_systems_own_calls_work);
  return 0;
}

#include "numa.hpp"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <fstream>

namespace duplexkv {
namespace {

int node_of(std::uintptr_t address) noexcept {
  int status = -1;
  const long asked = syscall(SYS_move_pages, 0, 1UL, &address, nullptr, &status, 0);
  return asked == 0 ? status : -1;
}

// Reads a number at *at and moves *at behind it.
bool read_number(const char** at, const char* end, int* out) noexcept {
  const auto [behind, error] = std::from_chars(*at, end, *out);
  *at = behind;
  return error == std::errc{} && *out >= 0 && *out < CPU_SETSIZE;
}

}  // namespace

std::vector<int> parse_cpus(const std::string& list) {
  std::vector<int> cpus;
  const char* at = list.data();
  const char* const end = at + list.size();
  while (at < end) {
    int first = 0;
    if (!read_number(&at, end, &first)) return {};
    int last = first;
    if (at < end && *at == '-') {
      ++at;
      if (at == end || !read_number(&at, end, &last)) return {};
    }
    for (int cpu = first; cpu <= last; ++cpu)
      cpus.push_back(cpu);
    if (at == end) break;
    if (*at != ',') return {};
    ++at;
  }
  return cpus;
}

int common_node(std::span<const std::uintptr_t> addresses) noexcept {
  int node = -1;
  for (const std::uintptr_t address : addresses) {
    const int here = node_of(address);
    if (here < 0 || (node >= 0 && here != node)) return -1;
    node = here;
  }
  return node;
}

bool stay_on_node(int node, const char* nodes_folder) {
  if (node < 0) return false;
  std::ifstream file(std::string(nodes_folder) + "/node" + std::to_string(node) + "/cpulist");
  std::string list;
  if (!std::getline(file, list)) return false;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return false;
  cpu_set_t wanted;
  CPU_ZERO(&wanted);
  for (const int cpu : parse_cpus(list)) {
    const auto index = static_cast<std::size_t>(cpu);
    if (CPU_ISSET(index, &allowed)) CPU_SET(index, &wanted);
  }
  if (CPU_COUNT(&wanted) == 0 || CPU_EQUAL(&wanted, &allowed)) return false;
  return sched_setaffinity(0, sizeof(wanted), &wanted) == 0;
}

}  // namespace duplexkv

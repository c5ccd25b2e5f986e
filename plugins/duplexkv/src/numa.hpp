// Which node of the machine memory is on, and threads that stay there. A machine without nodes, or
// a system that does not tell, costs nothing but the place.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace duplexkv {

inline constexpr const char* kNodesFolder = "/sys/devices/system/node";

// The CPUs of a list such as "0-3,8,10-11"; none for what is not one.
std::vector<int> parse_cpus(const std::string& list);

// The node that all of these addresses are on; -1: several, not known, or not touched yet.
int common_node(std::span<const std::uintptr_t> addresses) noexcept;

// Keeps the calling thread on those CPUs of a node that it may run on. False, and nothing changed:
// there are none, the node has them all anyway, or the system refuses.
bool stay_on_node(int node, const char* nodes_folder = kNodesFolder);

}  // namespace duplexkv

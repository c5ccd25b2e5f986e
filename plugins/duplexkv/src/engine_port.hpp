// An engine as a compute stream sees it through a berth: waits, marks, and what holds in a graph.
#pragma once

#include "engine.hpp"
#include "registry.hpp"

namespace duplexkv {

// Lays the engine into the berth of `key`. Unsupported for one without streams: nobody could be
// made to wait for it. The engine is withdrawn before it is destroyed (Registry::forget).
Status publish_engine(const char* key, Engine* engine);

}  // namespace duplexkv

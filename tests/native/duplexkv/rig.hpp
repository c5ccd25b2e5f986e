// Two small pools and an engine over them, as most tests want it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../check.hpp"
#include "engine.hpp"

namespace duplexkv_test {

using duplexkv::Direction;
using duplexkv::Engine;
using duplexkv::EngineConfig;
using duplexkv::Status;

using Ids = std::vector<std::int32_t>;
using Backends = std::array<std::unique_ptr<duplexkv::Backend>, 2>;

// Lanes with as many copying threads, however small the slice.
inline Backends host_backends(unsigned threads = 1) {
  const duplexkv::HostBackendConfig config{.threads = threads, .share_bytes_min = 64, .near = {}};
  return {duplexkv::make_host_backend(config), duplexkv::make_host_backend(config)};
}

inline duplexkv::EngineParts parts_of(Backends backends) {
  duplexkv::EngineParts parts;
  parts.backends = std::move(backends);
  return parts;
}

struct Group {
  Ids source;
  Ids target;
  std::int64_t after = -1;
};

struct Landed {
  std::int64_t ticket;
  std::uint8_t outcome;
  friend bool operator==(const Landed&, const Landed&) = default;
};

// All that has ended and was not told.
inline std::vector<Landed> poll_engine(Engine& engine) {
  std::array<std::int64_t, 16> tickets{};
  std::array<std::uint8_t, 16> outcomes{};
  std::vector<Landed> landed;
  std::size_t count = 0;
  do {
    CHECK(engine.poll(tickets, outcomes, &count) == Status::Ok);
    for (std::size_t i = 0; i < count; ++i)
      landed.push_back({tickets[i], outcomes[i]});
  } while (count > 0);
  return landed;
}

struct Rig {
  std::uint64_t block_bytes;
  std::vector<std::byte> device;
  std::vector<std::byte> host;
  std::unique_ptr<Engine> engine;

  explicit Rig(std::uint64_t device_blocks = 32, std::uint64_t host_blocks = 64,
               std::uint64_t bytes = 256, Backends backends = host_backends(),
               EngineConfig config = {})
      : Rig(parts_of(std::move(backends)), config, device_blocks, host_blocks, bytes) {}

  Rig(duplexkv::EngineParts parts, EngineConfig config, std::uint64_t device_blocks = 32,
      std::uint64_t host_blocks = 64, std::uint64_t bytes = 256)
      : block_bytes(bytes), device(device_blocks * bytes), host(host_blocks * bytes) {
    config.device = {.base = device.data(), .blocks = device_blocks};
    config.host = {.base = host.data(), .blocks = host_blocks};
    config.block_bytes = bytes;
    CHECK(Engine::create(config, std::move(parts), &engine) == Status::Ok);
  }

  Status submit(Direction direction, const std::vector<Group>& groups,
                std::int64_t* first = nullptr, std::uint8_t flags = 0) {
    Ids source;
    Ids target;
    std::vector<std::int64_t> offsets{0};
    std::vector<std::int64_t> after;
    for (const Group& group : groups) {
      source.insert(source.end(), group.source.begin(), group.source.end());
      target.insert(target.end(), group.target.begin(), group.target.end());
      offsets.push_back(static_cast<std::int64_t>(source.size()));
      after.push_back(group.after);
    }
    std::int64_t ticket = 0;
    const std::vector<std::uint8_t> all_flags(groups.size(), flags);
    const Status status =
        engine->submit(direction, {source, target, offsets, after, all_flags}, &ticket);
    if (first != nullptr) *first = ticket;
    return status;
  }

  std::vector<Landed> poll() const { return poll_engine(*engine); }

  // Polls until `groups` have landed.
  std::vector<Landed> collect(std::size_t groups) {
    std::vector<Landed> landed = poll();
    while (landed.size() < groups) {
      bool any = false;
      CHECK(engine->wait(std::chrono::seconds(60), &any) == Status::Ok);
      CHECK(any);
      for (const Landed& item : poll())
        landed.push_back(item);
    }
    CHECK(landed.size() == groups);
    return landed;
  }

  dkv_stats stats(Direction direction) const {
    dkv_stats out{};
    CHECK(engine->stats(direction, &out) == Status::Ok);
    return out;
  }

  std::byte& at(std::vector<std::byte>& pool, std::int32_t id, std::uint64_t offset = 0) const {
    return pool[static_cast<std::size_t>(id) * block_bytes + offset];
  }
};

}  // namespace duplexkv_test

#include "registry.hpp"

#include "structs.hpp"

using duplexkv::fail;
using duplexkv::guarded;
using duplexkv::Registry;
using duplexkv::Status;

// A visitor counts itself in and then looks (again) whether the berth is open, the owner shuts it
// and then looks for visitors: in the one order of these operations at least one sees the other.
// The first look keeps those who come after the shutting from being waited for.
dkv_berth::Visit::Visit(dkv_berth* berth) noexcept : berth_(berth) {
  if (!berth_->open_.load()) return;
  berth_->inside_.fetch_add(1);
  open_ = berth_->open_.load();
  if (!open_) leave();
}

dkv_berth::Visit::~Visit() {
  if (open_) leave();
}

void dkv_berth::Visit::leave() noexcept {
  if (berth_->inside_.fetch_sub(1) == 1 && !berth_->open_.load()) berth_->inside_.notify_all();
}

Status dkv_berth::open(const dkv_port& port, const duplexkv::Engine* engine) noexcept {
  if (open_.load()) return fail(Status::Busy, "key: another engine is published as \"%s\"", key());
  port_ = port;
  engine_ = engine;
  turn_.store(-1, std::memory_order_relaxed);
  groups_.store(0, std::memory_order_relaxed);
  open_.store(true);
  return Status::Ok;
}

void dkv_berth::close() noexcept {
  open_.store(false);
  for (std::uint32_t inside = inside_.load(); inside != 0; inside = inside_.load()) {
    inside_.wait(inside);
  }
  engine_ = nullptr;
}

Status dkv_berth::step(std::int64_t turn, std::span<const std::int64_t> tickets) noexcept {
  for (std::size_t group = 0; group < tickets.size(); ++group) {
    if (tickets[group] < 0) {
      return fail(Status::Invalid, "step: tickets[%zu] is %lld < 0", group,
                  static_cast<long long>(tickets[group]));
    }
  }
  for (std::size_t group = 0; group < tickets.size(); ++group) {
    tickets_[group].store(tickets[group], std::memory_order_relaxed);
  }
  turn_.store(turn, std::memory_order_relaxed);
  // For the thread that enqueues; one that looks from elsewhere may see two steps mixed.
  groups_.store(static_cast<std::uint32_t>(tickets.size()), std::memory_order_release);
  return Status::Ok;
}

Status dkv_berth::ticket(std::uint32_t group, std::int64_t* out) const noexcept {
  const std::uint32_t groups = groups_.load(std::memory_order_acquire);
  if (group >= groups) {
    return fail(Status::OutOfRange, "wait: group %u, the step of \"%s\" has %u", group, key(),
                groups);
  }
  *out = tickets_[group].load(std::memory_order_relaxed);
  return Status::Ok;
}

namespace duplexkv {

Registry& Registry::instance() {
  static Registry& table = *new Registry;
  return table;
}

Status Registry::find(const char* key, dkv_berth** out) {
  if (key == nullptr) return fail(Status::Invalid, "key: NULL");
  const std::size_t bytes = strnlen(key, DKV_KEY_BYTES_MAX + 1);
  if (bytes == 0 || bytes > DKV_KEY_BYTES_MAX) {
    return fail(Status::Invalid, "key: empty or longer than %d bytes", DKV_KEY_BYTES_MAX);
  }
  const std::string_view name(key, bytes);
  const auto found = berths_.find(name);
  if (found != berths_.end()) {
    *out = found->second.get();
    return Status::Ok;
  }
  if (berths_.size() >= DKV_BERTHS_MAX) {
    return fail(Status::TooLarge, "key: this process has used %d names already", DKV_BERTHS_MAX);
  }
  auto made = std::make_unique<dkv_berth>(name);
  *out = made.get();
  berths_.emplace(name, std::move(made));
  return Status::Ok;
}

Status Registry::lookup(const char* key, dkv_berth** out) {
  const std::lock_guard guard(lock_);
  return find(key, out);
}

Status Registry::publish(const char* key, const dkv_port& port, const Engine* engine) {
  const std::lock_guard guard(lock_);
  dkv_berth* berth = nullptr;
  const Status status = find(key, &berth);
  return status == Status::Ok ? berth->open(port, engine) : status;
}

Status Registry::withdraw(const char* key) {
  const std::lock_guard guard(lock_);
  dkv_berth* berth = nullptr;
  const Status status = find(key, &berth);
  if (status == Status::Ok) berth->close();
  return status;
}

void Registry::forget(const Engine* engine) noexcept {
  const std::lock_guard guard(lock_);
  for (const auto& [key, berth] : berths_) {
    if (berth->engine() == engine) berth->close();
  }
}

}  // namespace duplexkv

namespace {

// Calls body(port) inside the berth.
template <typename Body>
dkv_status visit(dkv_berth* berth, Body body) noexcept {
  if (berth == nullptr) return static_cast<dkv_status>(fail(Status::Invalid, "berth: NULL"));
  const dkv_berth::Visit inside(berth);
  const dkv_port* port = inside.port();
  if (port == nullptr) {
    return static_cast<dkv_status>(
        fail(Status::Absent, "no engine is published as \"%s\"", berth->key()));
  }
  return body(*port);
}

}  // namespace

extern "C" {

dkv_status dkv_engine_lookup(const char* key, dkv_berth** out) {
  return guarded([&] {
    if (out == nullptr) return fail(Status::Invalid, "out: NULL");
    *out = nullptr;
    return Registry::instance().lookup(key, out);
  });
}

dkv_status dkv_port_publish(const char* key, const dkv_port* port) {
  return guarded([&] {
    if (port == nullptr || port->struct_size < sizeof(dkv_port)) {
      return fail(Status::Invalid, "port: NULL or struct_size not set");
    }
    if (port->struct_size > sizeof(dkv_port)) {
      return fail(Status::Unsupported, "port: struct_size %u > %zu", port->struct_size,
                  sizeof(dkv_port));
    }
    if (port->wait == nullptr || port->mark == nullptr) {
      return fail(Status::Invalid, "port: wait or mark is NULL");
    }
    return Registry::instance().publish(key, *port, nullptr);
  });
}

dkv_status dkv_engine_withdraw(const char* key) {
  return guarded([&] { return Registry::instance().withdraw(key); });
}

dkv_status dkv_berth_step(dkv_berth* berth, int64_t turn, const int64_t* tickets, uint32_t count) {
  return guarded([&] {
    if (berth == nullptr) return fail(Status::Invalid, "berth: NULL");
    if (turn < 0) return fail(Status::Invalid, "turn: %lld < 0", static_cast<long long>(turn));
    if (count > DKV_STEP_GROUPS_MAX) {
      return fail(Status::TooLarge, "step: %u tickets > %d", count, DKV_STEP_GROUPS_MAX);
    }
    if (tickets == nullptr && count != 0) return fail(Status::Invalid, "tickets: NULL");
    return berth->step(turn, {tickets, count});
  });
}

dkv_status dkv_berth_wait(dkv_berth* berth, uint32_t group, void* stream) {
  return visit(berth, [&](const dkv_port& port) {
    std::int64_t ticket = 0;
    const Status status = berth->ticket(group, &ticket);
    return status == Status::Ok ? port.wait(port.self, ticket, stream)
                                : static_cast<dkv_status>(status);
  });
}

dkv_status dkv_berth_wait_ticket(dkv_berth* berth, int64_t ticket, void* stream) {
  return visit(berth, [&](const dkv_port& port) {
    if (ticket < 0) {
      return static_cast<dkv_status>(
          fail(Status::Invalid, "wait: ticket %lld < 0", static_cast<long long>(ticket)));
    }
    return port.wait(port.self, ticket, stream);
  });
}

dkv_status dkv_berth_mark(dkv_berth* berth, uint32_t layer, uint32_t layers, void* stream) {
  return visit(berth, [&](const dkv_port& port) {
    if (layer >= layers) {
      return static_cast<dkv_status>(
          fail(Status::OutOfRange, "mark: layer %u of %u", layer, layers));
    }
    const std::int64_t turn = berth->turn();
    if (turn < 0) {
      return static_cast<dkv_status>(
          fail(Status::Invalid, "mark: \"%s\" was told of no step", berth->key()));
    }
    return port.mark(port.self, turn, layer, layers, stream);
  });
}

dkv_status dkv_berth_rotate(dkv_berth* berth, const dkv_rotation* rotation, void* stream) {
  return visit(berth, [&](const dkv_port& port) {
    if (rotation == nullptr || rotation->struct_size != sizeof(dkv_rotation)) {
      return static_cast<dkv_status>(
          fail(Status::Invalid, "rotation: NULL or struct_size not set"));
    }
    if (port.rotate == nullptr) {
      return static_cast<dkv_status>(
          fail(Status::Unsupported, "\"%s\" copies nothing that the device decides", berth->key()));
    }
    return port.rotate(port.self, rotation, stream);
  });
}

dkv_status dkv_berth_refused(dkv_berth* berth, uint32_t direction, uint64_t* rows) {
  return visit(berth, [&](const dkv_port& port) {
    if (direction > DKV_H2D) {
      return static_cast<dkv_status>(
          fail(Status::Invalid, "refused: direction %u > %d", direction, DKV_H2D));
    }
    if (rows == nullptr) return static_cast<dkv_status>(fail(Status::Invalid, "rows: NULL"));
    if (port.refused == nullptr) {
      return static_cast<dkv_status>(
          fail(Status::Unsupported, "\"%s\" copies nothing that the device decides", berth->key()));
    }
    return port.refused(port.self, direction, rows);
  });
}

}  // extern "C"

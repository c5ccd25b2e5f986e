#include "engine_port.hpp"

namespace duplexkv {
namespace {

Stream stream_of(void* stream) {
  return reinterpret_cast<Stream>(stream);
}

// What holds for every call, whether it has something to do or not.
Status check_alive(const Engine& engine) {
  if (engine.forked()) return fail(Status::Forked, "engine: made before a fork");
  for (const Direction direction : {Direction::D2H, Direction::H2D}) {
    dkv_stats stats{};
    const Status status = engine.stats(direction, &stats);
    if (status != Status::Ok) return status;
    if (stats.poisoned != 0) return fail(Status::Poisoned, "engine: a lane copies no more");
  }
  return Status::Ok;
}

// In a graph the ticket of the capture means nothing at its replays: each launch waits for all
// copies in that are in the lane's stream by then.
dkv_status wait(void* self, std::int64_t ticket, void* stream) {
  auto* engine = static_cast<Engine*>(self);
  Status status = check_alive(*engine);
  if (status == Status::Ok) {
    if (engine->capturing(stream_of(stream))) {
      status = engine->graph_wait(stream_of(stream));
    } else if (ticket != 0) {
      status = engine->stream_wait(ticket, stream_of(stream));
    }
  }
  return static_cast<dkv_status>(status);
}

// A block is whole when the last layer has written it, so earlier layers mark nothing. In a graph
// nothing is marked either: the host marks the turn behind the launch, and a forgotten mark holds
// the lanes, it corrupts nothing.
dkv_status mark(void* self, std::int64_t turn, std::uint32_t layer, std::uint32_t layers,
                void* stream) {
  auto* engine = static_cast<Engine*>(self);
  Status status = check_alive(*engine);
  if (status == Status::Ok && layer + 1 == layers && !engine->capturing(stream_of(stream))) {
    status = engine->mark_stream(turn, stream_of(stream));
    if (status == Status::Busy) status = Status::Ok;  // the next turn's mark covers this one
  }
  return static_cast<dkv_status>(status);
}

// Copies beside the lanes: the books do not know of them. A GPU that is found lost here is lost for
// the lanes as well.
dkv_status rotate(void* self, const dkv_rotation* rotation, void* stream) {
  auto* engine = static_cast<Engine*>(self);
  Status status = check_alive(*engine);
  if (status != Status::Ok) return static_cast<dkv_status>(status);
  status = engine->gpu()->rotate(stream_of(stream), *rotation);
  if (status == Status::Poisoned) {
    for (const Direction direction : {Direction::D2H, Direction::H2D})
      static_cast<void>(engine->poison(direction));
  }
  return static_cast<dkv_status>(status);
}

// Also of an engine that copies no more: it only looks.
dkv_status refused(void* self, std::uint32_t direction, std::uint64_t* rows) {
  auto* engine = static_cast<Engine*>(self);
  return static_cast<dkv_status>(engine->gpu()->rotation_refused(direction, rows));
}

}  // namespace

Status publish_engine(const char* key, Engine* engine) {
  if (!engine->on_gpu()) {
    return fail(Status::Unsupported, "publish: the engine's backend has no streams");
  }
  const dkv_port port{.struct_size = sizeof(dkv_port),
                      .reserved = 0,
                      .self = engine,
                      .wait = wait,
                      .mark = mark,
                      .rotate = rotate,
                      .refused = refused};
  return Registry::instance().publish(key, port, engine);
}

}  // namespace duplexkv

// What the scheduler and compute of a rotation trace do.
#include <algorithm>

#include "rotation_trace.hpp"

namespace duplexkv_test {
namespace {

std::uint64_t word_of(std::uint64_t salt, std::size_t position, int word) {
  return (salt * 1'000'003 + position * 64 + static_cast<std::uint64_t>(word)) *
         0x9E3779B97F4A7C15U;
}

}  // namespace

RotationTrace::RequestPtr RotationTrace::any_of(Phase phase) {
  std::vector<RequestPtr> found;
  for (const RequestPtr& request : live_) {
    const bool busy = phase == Phase::Running && request->arriving;
    if (request->phase == phase && !busy && !request->blocks.empty()) found.push_back(request);
  }
  return found.empty() ? nullptr : found[random_() % found.size()];
}

RotationTrace::Request* RotationTrace::begin() {
  live_.push_back(std::make_shared<Request>());
  live_.back()->salt = next_salt_++;
  return live_.back().get();
}

void RotationTrace::compute(Request* request, bool append) {
  if (!append || !this->append(request)) read(request);
}

// Writes one token. False: no room.
bool RotationTrace::append(Request* request) {
  if (request->blocks.empty() || request->blocks.back().written == kTokens) {
    if (request->blocks.size() == kBlocksMax) return false;
    const std::optional<std::int32_t> slot = device_slots_.take();
    if (!slot) return false;
    request->blocks.push_back({.device = *slot});
  }
  Block& block = request->blocks.back();
  const std::size_t position =
      (request->blocks.size() - 1) * kTokens + static_cast<std::size_t>(block.written);
  std::uint64_t* const to = device_.data() + (block.device * kTokens + block.written) * kTokenWords;
  gpu_->run(stream_, [to, position, salt = request->salt] {
    for (int word = 0; word < kTokenWords; ++word)
      store_word(to + word, word_of(salt, position, word));
  });
  ++block.written;
  block.written_turn = open_turn_;
  device_slots_.touch(block.device, open_turn_);
  return true;
}

// Looks at all tokens, as attention does.
void RotationTrace::read(Request* request) {
  for (std::size_t index = 0; index < request->blocks.size(); ++index) {
    const Block& block = request->blocks[index];
    const std::uint64_t* const from = device_.data() + block.device * kTokens * kTokenWords;
    gpu_->run(stream_, [from, index, tokens = block.written, salt = request->salt, tally = reads_] {
      bool good = true;
      for (int token = 0; token < tokens; ++token) {
        const std::size_t position = index * kTokens + static_cast<std::size_t>(token);
        for (int word = 0; word < kTokenWords; ++word) {
          good =
              good && load_word(from + token * kTokenWords + word) == word_of(salt, position, word);
        }
      }
      ++tally->looks;
      if (!good) ++tally->bad;
    });
    device_slots_.touch(block.device, open_turn_);
  }
}

void RotationTrace::look_at_host(const Request& request, const Block& block, Tally* tally) {
  const std::uint64_t* const from = host_.data() + block.host * kTokens * kTokenWords;
  const auto index = static_cast<std::size_t>(&block - request.blocks.data());
  bool good = true;
  for (int token = 0; token < block.synced; ++token) {
    const std::size_t position = index * kTokens + static_cast<std::size_t>(token);
    for (int word = 0; word < kTokenWords; ++word) {
      good = good &&
             load_word(from + token * kTokenWords + word) == word_of(request.salt, position, word);
    }
  }
  ++tally->looks;
  if (!good) ++tally->bad;
}

void RotationTrace::add(Flight* flight, std::size_t block) {
  const Block& added = flight->request->blocks[block];
  flight->blocks.push_back(block);
  flight->device.push_back(added.device);
  flight->host.push_back(added.host);
  flight->tokens.push_back(added.written);
}

// In the air from here on, if Ok.
Status RotationTrace::submit(Flight flight) {
  const bool in = flight.kind == Kind::In;
  const Ids& source = in ? flight.host : flight.device;
  const Ids& target = in ? flight.device : flight.host;
  const std::vector<std::int64_t> offsets{0, static_cast<std::int64_t>(source.size())};
  const std::vector<std::int64_t> after{flight.after};
  const std::vector<std::uint8_t> flags{static_cast<std::uint8_t>(flight.urgent ? 0 : DKV_EAGER)};
  std::int64_t ticket = 0;
  const Status status = engine_->submit(in ? Direction::H2D : Direction::D2H,
                                        {source, target, offsets, after, flags}, &ticket);
  if (status != Status::Ok) return status;
  for (const std::int32_t slot : flight.device)
    device_slots_.use(slot);
  for (const std::int32_t slot : flight.host)
    host_slots_.use(slot);
  ++flight.request->flights;
  if (in) flight.request->ticket = ticket;
  air_.emplace(ticket, std::move(flight));
  return status;
}

// A scheduler that keeps the rules is never refused for anything but room.
bool RotationTrace::taken(Status status) {
  CHECK(status == Status::Ok || status == Status::Busy || status == Status::Poisoned ||
        options_.missing != Missing::Nothing);
  return status == Status::Ok;
}

void RotationTrace::copy_eagerly(const RequestPtr& request) {
  for (std::size_t index = 0; index < request->blocks.size(); ++index) {
    Block& block = request->blocks[index];
    if (block.written < kTokens || block.synced == kTokens || block.flying || chance(50)) continue;
    if (block.host == kNone) block.host = host_slots_.take().value_or(kNone);
    if (block.host == kNone) return;
    Flight flight{
        .kind = Kind::Eager, .request = request, .after = block.written_turn, .urgent = false};
    add(&flight, index);
    block.flying = taken(submit(std::move(flight)));
    if (block.flying) block.synced = 0;
  }
}

void RotationTrace::rotate_out(const RequestPtr& request) {
  if (request == nullptr) return;
  Flight flight{.kind = Kind::Out, .request = request};
  for (std::size_t index = 0; index < request->blocks.size(); ++index) {
    Block& block = request->blocks[index];
    if (block.flying || block.synced == block.written) continue;
    if (block.host == kNone) block.host = host_slots_.take().value_or(kNone);
    if (block.host == kNone) return;
    flight.after = std::max(flight.after, block.written_turn);
    add(&flight, index);
  }
  if (!flight.blocks.empty()) {
    const std::vector<std::size_t> blocks = flight.blocks;
    if (!taken(submit(std::move(flight)))) return;
    for (const std::size_t index : blocks) {
      request->blocks[index].flying = true;
      request->blocks[index].synced = 0;
    }
  }
  request->phase = Phase::Leaving;
  request->failed = false;
  settle_leaving(request.get());
}

// A device slot for each block of the flight's request; `first` instead of the first. Behind all
// compute that the slots' last owners have in the stream.
bool RotationTrace::take_device(Flight* flight, std::optional<std::int32_t> first) {
  const std::size_t blocks = flight->request->blocks.size();
  if (device_slots_.free() + (first ? 1 : 0) < blocks) return false;
  for (std::size_t index = 0; index < blocks; ++index) {
    add(flight, index);
    flight->device.back() = index == 0 && first ? *first : *device_slots_.take();
    flight->after = std::max(flight->after, device_slots_.touched(flight->device.back()));
  }
  return true;
}

// The copy in was taken.
void RotationTrace::come_in(const Flight& flight) {
  Request* const request = flight.request.get();
  for (std::size_t index = 0; index < request->blocks.size(); ++index)
    request->blocks[index].device = flight.device[index];
  request->phase = Phase::Arriving;
  request->arriving = true;
  request->drops_host = chance(50);
}

void RotationTrace::rotate_in(const RequestPtr& request) {
  if (request == nullptr) return;
  Flight flight{.kind = Kind::In, .request = request};
  if (!take_device(&flight)) return;
  if (taken(submit(flight))) return come_in(flight);
  for (const std::int32_t slot : flight.device)
    device_slots_.give(slot);
}

// The compute stream waits for the ticket; Busy if the lane is too slow.
Status RotationTrace::wait_in_stream(std::int64_t ticket) {
  Status status = engine_->stream_wait(ticket, stream_);
  for (int tries = 0; status == Status::Busy && tries < 100; ++tries) {
    std::this_thread::yield();
    status = engine_->stream_wait(ticket, stream_);
  }
  return status;
}

// Compute goes on with a request whose copy in has not been told: the stream waits for it.
void RotationTrace::use_early(const RequestPtr& request) {
  if (request == nullptr || !chance(60)) return;
  const auto found = air_.find(request->ticket);
  if (found == air_.end() || found->second.cancelled) return;
  const Status status = wait_in_stream(request->ticket);
  if (!options_.streams) CHECK(status == Status::Unsupported);
  if (status != Status::Ok) return;
  ++result_.early_uses;
  request->phase = Phase::Running;
  const bool appends = chance(50);
  const Missing rule = appends ? Missing::FirstAppend : Missing::FirstRead;
  if (options_.missing == rule) gpu_->forget_waits(stream_);
  compute(request.get(), appends);
}

void RotationTrace::cancel_one() {
  auto chosen = air_.begin();
  std::advance(chosen, static_cast<std::ptrdiff_t>(random_() % air_.size()));
  Flight& flight = chosen->second;
  const bool in_use = flight.kind == Kind::In && flight.request->phase == Phase::Running;
  if (flight.cancelled || in_use) return;
  CHECK(engine_->cancel(chosen->first) == Status::Ok);
  flight.cancelled = true;
}

// As if a cancelled copy were not in the air: one that is, and a new request takes its blocks.
void RotationTrace::cancel_carelessly() {
  const RequestPtr request = any_of(Phase::Arriving);
  if (request == nullptr) return;
  const std::int64_t ticket = request->ticket;
  const Status in_stream = wait_in_stream(ticket);
  gpu_->forget_waits(stream_);
  if (in_stream != Status::Ok) return;
  Flight& flight = air_.at(ticket);
  CHECK(engine_->cancel(ticket) == Status::Ok);
  flight.cancelled = flight.forgotten = true;
  device_book_->forget(flight.device);
  host_book_->forget(flight.host);
  for (const std::int32_t slot : flight.device)
    device_slots_.unuse(slot);
  for (const std::int32_t slot : flight.host)
    host_slots_.unuse(slot);
  --request->flights;
  land_in(flight, false);
  append(begin());
}

void RotationTrace::end(const RequestPtr& request) {
  const RequestPtr ended = request;
  ended->ended = true;
  std::erase(live_, ended);
  for (const Block& block : ended->blocks) {
    device_slots_.give(block.device);
    host_slots_.give(block.host);
  }
}

}  // namespace duplexkv_test

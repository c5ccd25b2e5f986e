// Random rotations of requests whose every token is known, over an engine on the host or on a
// virtual GPU. The trace plays scheduler and compute: it keeps the rules that are a scheduler's,
// tries now and then what the engine must refuse, and counts every byte that is not as in a world
// where all happens one after the other.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <vector>

#include "rig.hpp"
#include "virtual_gpu.hpp"

namespace duplexkv_test {

// A rule of the happens-before table that is taken away; the numbers are the table's.
enum class Missing {
  Nothing,
  EagerAfterCompute,   // 2
  OrderInStream,       // 2, 5: a copy out reads at any time
  TailAfterCompute,    // 5
  CopyInAfterCompute,  // 8: who used the block before
  CopyInAfterCopyOut,  // 8: the block was a source
  SlotValid,           // 8: the slot is still being filled
  FirstRead,           // 9
  FirstAppend,         // 10
  SlotRead,            // 11
  OneWriter,           // 12
  CancelWaits,         // 15
};

struct TraceOptions {
  std::uint64_t seed = 1;
  std::int64_t turns = 150;
  bool streams = true;        // on a virtual GPU; otherwise host threads and marks by the host
  unsigned host_threads = 1;  // of a lane
  bool halves = false;        // pools laid out as the second halves of all blocks, then the first
  Missing missing = Missing::Nothing;
  std::uint64_t fail_call = 0;
  std::int64_t lose_turn = -1;
  std::int64_t poison_turn = -1;  // of the lane out
};

// What was looked at, and how much of it was wrong.
struct Tally {
  std::atomic<int> looks{0};
  std::atomic<int> bad{0};
};

struct TraceResult {
  bool created = true;
  int bad_reads = 0;  // by compute
  int bad_eager = 0;  // slots filled ahead of need
  int bad_tails = 0;  // slots filled when a request left
  int looks = 0;
  int rotations = 0;  // that came back
  int cancelled = 0;
  int failed = 0;
  int refused = 0;  // copies that would have raced
  int early_uses = 0;
  [[nodiscard]] int bad() const { return bad_reads + bad_eager + bad_tails; }
};

// Slots of a tier: free, owned, or given back while a copy still uses them. The newest free one is
// taken first, so that who comes too late meets a new owner.
class Slots {
 public:
  explicit Slots(std::int32_t count);
  std::optional<std::int32_t> take();
  void take_over(std::int32_t slot) { states_[index(slot)].owned = true; }
  void give(std::int32_t slot);  // -1: none
  void use(std::int32_t slot) { ++states_[index(slot)].uses; }
  void unuse(std::int32_t slot);
  void touch(std::int32_t slot, std::int64_t turn) { states_[index(slot)].touched = turn; }
  [[nodiscard]] std::int64_t touched(std::int32_t slot) const {
    return states_[index(slot)].touched;
  }
  [[nodiscard]] bool owned(std::int32_t slot) const { return states_[index(slot)].owned; }
  [[nodiscard]] std::size_t free() const { return free_.size(); }
  [[nodiscard]] bool all_free() const { return free_.size() == states_.size(); }

 private:
  struct State {
    bool owned = false;
    int uses = 0;               // copies in the air
    std::int64_t touched = -1;  // the newest turn whose compute reads or writes it
  };
  static std::size_t index(std::int32_t slot) { return static_cast<std::size_t>(slot); }

  std::vector<State> states_;
  std::vector<std::int32_t> free_;
};

class RotationTrace {
 public:
  explicit RotationTrace(const TraceOptions& options);
  TraceResult run();

 private:
  static constexpr std::int32_t kDevice = 22;
  static constexpr std::int32_t kHost = 40;
  static constexpr int kTokens = 4;  // of a block
  static constexpr int kTokenWords = 8;
  static constexpr std::uint64_t kBytes = kTokens * kTokenWords * sizeof(std::uint64_t);
  static constexpr int kBlocksMax = 4;
  static constexpr std::int32_t kNone = -1;

  enum class Phase { Running, Leaving, Rotary, Arriving };
  enum class Kind { Eager, Out, In };
  struct Block {
    std::int32_t device = kNone;
    std::int32_t host = kNone;
    int written = 0;                // tokens, by compute that was enqueued
    int synced = 0;                 // tokens that are valid in the host slot
    bool flying = false;            // out
    std::int64_t written_turn = 0;  // the newest
  };
  struct Request {
    std::uint64_t salt = 0;
    Phase phase = Phase::Running;
    std::vector<Block> blocks;
    int flights = 0;          // of all kinds
    std::int64_t ticket = 0;  // of the copy in
    bool arriving = false;    // the copy in was not told yet
    bool drops_host = false;  // when it has come back
    bool failed = false;      // some copy of this rotation
    bool ended = false;
  };
  using RequestPtr = std::shared_ptr<Request>;
  struct Flight {
    Kind kind = Kind::Eager;
    RequestPtr request = nullptr;
    std::vector<std::size_t> blocks = {};  // of the request
    Ids device = {};
    Ids host = {};
    std::vector<int> tokens = {};  // that cross, of each block
    std::int64_t after = -1;
    bool urgent = true;
    bool cancelled = false;
    bool forgotten = false;  // Missing::CancelWaits
  };

  // rotation_trace.cpp: the life of the trace, and what is checked
  void build();
  void turn();
  void finish();
  void lose_and_look();
  void close();
  void end_compute_turn();
  void wait_for_compute();
  void look_at_host(const Request& request, const Block& block, Tally* tally);
  void look_at_end();
  void everything_is_free();
  void land(const std::vector<Landed>& landed);
  void land_out(const Flight& flight, bool ok);
  void land_in(const Flight& flight, bool ok);
  void settle_leaving(Request* request);

  // rotation_moves.cpp: what the scheduler does
  Request* begin();
  void compute(Request* request, bool append);
  bool append(Request* request);
  void read(Request* request);
  void copy_eagerly(const RequestPtr& request);
  void rotate_out(const RequestPtr& request);
  void rotate_in(const RequestPtr& request);
  Status wait_in_stream(std::int64_t ticket);
  void use_early(const RequestPtr& request);
  void cancel_one();
  void cancel_carelessly();
  void end(const RequestPtr& request);
  static void add(Flight* flight, std::size_t block);
  bool take_device(Flight* flight, std::optional<std::int32_t> first = std::nullopt);
  void come_in(const Flight& flight);
  Status submit(Flight flight);
  bool taken(Status status);
  bool chance(int percent) { return static_cast<int>(random_() % 100) < percent; }
  RequestPtr any_of(Phase phase);

  // rotation_rules.cpp: what the engine must refuse
  void break_a_rule();
  void read_a_slot_being_filled();
  void write_a_block_being_read();
  void write_a_slot_being_read();
  void write_a_slot_being_written();
  bool accepted(Status status);
  const Flight* any_flight(Kind kind, Phase phase);
  bool aim_at_slot(const Request* not_of, Flight* flight);

  TraceOptions options_;
  std::mt19937_64 random_;
  std::vector<std::uint64_t> device_;
  std::vector<std::uint64_t> host_;
  std::shared_ptr<VirtualGpu> gpu_;
  Stream stream_ = 0;  // compute
  std::unique_ptr<Engine> engine_;
  class LaxBook* device_book_ = nullptr;
  class LaxBook* host_book_ = nullptr;
  Slots device_slots_{kDevice};
  Slots host_slots_{kHost};
  std::vector<RequestPtr> live_;
  std::map<std::int64_t, Flight> air_;
  std::uint64_t next_salt_ = 1;
  std::int64_t turn_ = 0;
  std::int64_t open_turn_ = 0;                           // whose batch takes what compute does now
  std::shared_ptr<std::atomic<std::int64_t>> computed_;  // the newest turn that has ended
  std::shared_ptr<Tally> reads_ = std::make_shared<Tally>();
  Tally eager_;
  Tally tails_;
  TraceResult result_;
};

// A book without one of its rules.
class LaxBook final : public duplexkv::Book {
 public:
  struct Rules {
    bool read_written = false;
    bool write_read = false;
    bool write_written = false;
  };
  LaxBook(std::uint64_t blocks, Rules lax)
      : Book(blocks), lax_(lax), readers_(blocks), writers_(blocks) {}
  Status take_readers(duplexkv::Ids ids) noexcept override;
  Status take_writers(duplexkv::Ids ids) noexcept override;
  void drop_readers(duplexkv::Ids ids) noexcept override;
  void drop_writers(duplexkv::Ids ids) noexcept override;
  // As if the copies that use them had ended.
  void forget(duplexkv::Ids ids);

 private:
  static void drop(duplexkv::Ids ids, std::vector<int>* uses) noexcept;
  Rules lax_;
  std::vector<int> readers_;
  std::vector<int> writers_;
};

}  // namespace duplexkv_test

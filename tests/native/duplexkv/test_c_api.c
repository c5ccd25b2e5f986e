/* The header is plain C and keeps its promises about structs, NULLs and messages. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "duplexkv/duplexkv.h"

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

enum { BLOCKS = 8, BLOCK_BYTES = 1024 };

static dkv_config config_over(dkv_arena* device, dkv_arena* host) {
  dkv_config config;
  memset(&config, 0, sizeof(config));
  config.struct_size = sizeof(config);
  config.backend = DKV_BACKEND_HOST;
  config.device_base = dkv_arena_base(device);
  config.device_blocks = BLOCKS;
  config.host_base = dkv_arena_base(host);
  config.host_blocks = BLOCKS;
  config.block_bytes = BLOCK_BYTES;
  return config;
}

static dkv_submission one_group(const int32_t* source, const int32_t* target, uint64_t count) {
  static const int64_t after[1] = {-1};
  static int64_t offsets[2];
  offsets[1] = (int64_t)count;
  dkv_submission submission;
  memset(&submission, 0, sizeof(submission));
  submission.struct_size = sizeof(submission);
  submission.direction = DKV_D2H;
  submission.source = source;
  submission.target = target;
  submission.id_count = count;
  submission.offsets = offsets;
  submission.after = after;
  submission.group_count = 1;
  return submission;
}

static void versions_of_structs(dkv_arena* device, dkv_arena* host) {
  dkv_engine* engine = NULL;
  struct {
    dkv_config known;
    uint64_t unknown[2];
  } newer;
  memset(&newer, 0, sizeof(newer));
  newer.known = config_over(device, host);
  newer.known.struct_size = sizeof(newer);
  CHECK(dkv_engine_create(&newer.known, &engine) == DKV_OK);
  dkv_engine_destroy(engine);
  newer.unknown[1] = 1;
  CHECK(dkv_engine_create(&newer.known, &engine) == DKV_UNSUPPORTED && engine == NULL);
  CHECK(strstr(dkv_last_error(), "struct_size") != NULL);
  dkv_config config = config_over(device, host);
  config.struct_size = 8;
  CHECK(dkv_engine_create(&config, &engine) == DKV_INVALID);
  config = config_over(device, host);
  config.backend = 77;
  CHECK(dkv_engine_create(&config, &engine) == DKV_UNSUPPORTED);
  CHECK(strstr(dkv_last_error(), "77") != NULL);
}

/* Two layers of K and V on the device, blocks on the host: bytes come together, and go back. */
static void layouts_may_differ(void) {
  enum { PART_BYTES = BLOCK_BYTES / 4 };
  static unsigned char layers[4][BLOCKS][PART_BYTES];
  static unsigned char host[BLOCKS][BLOCK_BYTES];
  dkv_segment segments[4];
  for (int part = 0; part < 4; ++part) {
    segments[part].base = layers[part];
    segments[part].stride = segments[part].bytes = PART_BYTES;
    memset(layers[part][2], 'a' + part, PART_BYTES);
  }
  dkv_config config;
  memset(&config, 0, sizeof(config));
  config.struct_size = sizeof(config);
  config.device_blocks = config.host_blocks = BLOCKS;
  config.host_base = host;
  config.block_bytes = BLOCK_BYTES;
  config.device_segments = segments;
  config.device_segment_count = 4;
  config.host_threads = 2;
  dkv_budget* budget = NULL;
  CHECK(dkv_budget_create(1, &budget) == DKV_INVALID && budget == NULL);
  CHECK(strstr(dkv_last_error(), "bytes_per_s 1") != NULL);
  CHECK(dkv_budget_create(1e9, &budget) == DKV_OK);
  config.budget = budget;
  dkv_engine* engine = NULL;
  CHECK(dkv_engine_create(&config, &engine) == DKV_OK);
  dkv_budget_destroy(budget); /* the engine keeps what it shares */
  int32_t from = 2;
  int32_t to = 5;
  int64_t ticket = 0;
  int landed = 0;
  dkv_submission submission = one_group(&from, &to, 1);
  CHECK(dkv_submit(engine, &submission, &ticket) == DKV_OK);
  CHECK(dkv_wait(engine, 10000000000, &landed) == DKV_OK && landed == 1);
  for (int byte = 0; byte < BLOCK_BYTES; ++byte)
    CHECK(host[5][byte] == 'a' + byte / PART_BYTES);
  dkv_stats stats;
  stats.struct_size = sizeof(stats);
  CHECK(dkv_get_stats(engine, DKV_D2H, &stats) == DKV_OK && stats.descriptors == 4);
  dkv_engine_destroy(engine);
  config.budget = NULL;
  segments[3].bytes -= 1;
  CHECK(dkv_engine_create(&config, &engine) == DKV_INVALID && engine == NULL);
  CHECK(strstr(dkv_last_error(), "1023") != NULL && strstr(dkv_last_error(), "1024") != NULL);
  config.device_segment_count = 0;
  CHECK(dkv_engine_create(&config, &engine) == DKV_INVALID);
  config.device_segments = NULL;
  config.device_base = layers;
  config.host_threads = 65;
  CHECK(dkv_engine_create(&config, &engine) == DKV_INVALID);
  CHECK(strstr(dkv_last_error(), "host_threads: 65 > 64") != NULL);
  config.host_threads = 1;
  config.reserved = 1;
  CHECK(dkv_engine_create(&config, &engine) == DKV_UNSUPPORTED);
}

static void nulls_are_refused(dkv_engine* engine) {
  int32_t id = 0;
  dkv_submission submission = one_group(&id, &id, 1);
  int64_t ticket = 0;
  uint8_t outcome = 0;
  uint64_t count = 0;
  int landed = 0;
  double rate = 0;
  dkv_engine* none = NULL;
  CHECK(dkv_engine_create(NULL, &none) == DKV_INVALID);
  CHECK(dkv_engine_create(NULL, NULL) == DKV_INVALID);
  CHECK(dkv_submit(NULL, &submission, &ticket) == DKV_INVALID);
  CHECK(dkv_submit(engine, NULL, &ticket) == DKV_INVALID);
  CHECK(dkv_submit(engine, &submission, NULL) == DKV_INVALID);
  submission.after = NULL;
  CHECK(dkv_submit(engine, &submission, &ticket) == DKV_INVALID);
  submission = one_group(&id, &id, 1);
  submission.direction = 2;
  CHECK(dkv_submit(engine, &submission, &ticket) == DKV_INVALID);
  submission = one_group(&id, &id, 1);
  submission.group_count = UINT64_MAX;
  CHECK(dkv_submit(engine, &submission, &ticket) == DKV_INVALID);
  CHECK(dkv_mark(NULL, 1) == DKV_INVALID);
  CHECK(dkv_poll(engine, NULL, &outcome, 1, &count) == DKV_INVALID);
  CHECK(dkv_poll(engine, &ticket, &outcome, 1, NULL) == DKV_INVALID);
  CHECK(dkv_wait(engine, 0, NULL) == DKV_INVALID);
  CHECK(dkv_wait(engine, -5, &landed) == DKV_INVALID);
  CHECK(dkv_poison(engine, 9) == DKV_INVALID);
  CHECK(dkv_get_stats(engine, 0, NULL) == DKV_INVALID);
  CHECK(dkv_close(NULL) == DKV_INVALID);
  CHECK(dkv_measure_copy(NULL) == DKV_INVALID);
  CHECK(dkv_measure_copy(&rate) == DKV_OK && rate > 0);
  dkv_engine_destroy(NULL);
  dkv_arena_destroy(NULL);
}

static void bytes_cross(dkv_engine* engine, dkv_arena* device, dkv_arena* host) {
  const int32_t source[3] = {1, 2, 5};
  const int32_t target[3] = {6, 7, 0};
  char* from = dkv_arena_base(device);
  const char* to = dkv_arena_base(host);
  for (int i = 0; i < BLOCKS * BLOCK_BYTES; ++i)
    from[i] = (char)(i * 7);
  dkv_submission submission = one_group(source, target, 3);
  int64_t ticket = 0;
  CHECK(dkv_submit(engine, &submission, &ticket) == DKV_OK && ticket > 0);
  int landed = 0;
  CHECK(dkv_wait(engine, INT64_MAX, &landed) == DKV_OK && landed == 1);
  int64_t tickets[4];
  uint8_t outcomes[4];
  uint64_t count = 0;
  CHECK(dkv_poll(engine, tickets, outcomes, 4, &count) == DKV_OK);
  CHECK(count == 1 && tickets[0] == ticket && outcomes[0] == DKV_DONE);
  for (int i = 0; i < 3; ++i) {
    CHECK(memcmp(to + target[i] * BLOCK_BYTES, from + source[i] * BLOCK_BYTES, BLOCK_BYTES) == 0);
  }
  dkv_stats stats;
  memset(&stats, 0xFF, sizeof(stats));
  stats.struct_size = sizeof(stats);
  CHECK(dkv_get_stats(engine, DKV_D2H, &stats) == DKV_OK);
  CHECK(stats.bytes == 3 * BLOCK_BYTES && stats.descriptors == 2 && stats.groups_done == 1);
  /* An older caller's shorter struct is filled as far as it goes, not a byte further. */
  memset(&stats, 0xEE, sizeof(stats));
  stats.struct_size = 16;
  CHECK(dkv_get_stats(engine, DKV_D2H, &stats) == DKV_OK);
  CHECK(stats.struct_size == 16 && stats.bytes == 3 * BLOCK_BYTES);
  CHECK(stats.slices == 0xEEEEEEEEEEEEEEEEull);
}

int main(void) {
  CHECK(dkv_version() == (DKV_VERSION_MAJOR << 16 | DKV_VERSION_MINOR));
  CHECK(strcmp(dkv_last_error(), "") == 0);
  for (int status = DKV_OK; status <= DKV_INTERNAL; ++status) {
    CHECK(strcmp(dkv_status_name((dkv_status)status), "unknown") != 0);
  }
  CHECK(strcmp(dkv_status_name((dkv_status)99), "unknown") == 0);
  dkv_arena* device = NULL;
  dkv_arena* host = NULL;
  CHECK(dkv_arena_create(0, 1, &device) == DKV_INVALID && device == NULL);
  CHECK(dkv_arena_create(1, 1, NULL) == DKV_INVALID);
  CHECK(dkv_arena_create(BLOCKS, BLOCK_BYTES, &device) == DKV_OK);
  CHECK(dkv_arena_create(BLOCKS, BLOCK_BYTES, &host) == DKV_OK);
  CHECK(dkv_arena_bytes(device) == BLOCKS * BLOCK_BYTES);
  versions_of_structs(device, host);
  layouts_may_differ();
  dkv_config config = config_over(device, host);
  dkv_engine* engine = NULL;
  CHECK(dkv_engine_create(&config, &engine) == DKV_OK);
  nulls_are_refused(engine);
  bytes_cross(engine, device, host);
  CHECK(dkv_close(engine) == DKV_OK && dkv_close(engine) == DKV_OK);
  int32_t id = 0;
  dkv_submission submission = one_group(&id, &id, 1);
  int64_t ticket = 0;
  CHECK(dkv_submit(engine, &submission, &ticket) == DKV_CLOSED);
  dkv_engine_destroy(engine);
  dkv_arena_destroy(host);
  dkv_arena_destroy(device);
  return 0;
}

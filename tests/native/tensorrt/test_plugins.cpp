// The life of a plugin without TensorRT: creators, fields there and back, shapes, formats, clones,
// enqueue against a port that writes down what it is asked.
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "duplexkv/registry.h"
#include "library.hpp"
#include "mock_builder.hpp"

namespace {

using nvinfer1::DataType;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

const char* library_path = nullptr;

// An engine as a plugin sees it.
struct FakeEngine {
  std::vector<std::int64_t> waited;
  std::vector<std::array<std::int64_t, 3>> marked;  // turn, layer, layers
  std::vector<dkv_rotation> rotated;
  std::vector<void*> streams;
  dkv_status answer = DKV_OK;

  explicit FakeEngine(const char* name, bool rotates = true) : key(name) {
    const dkv_port port{.struct_size = sizeof(dkv_port),
                        .reserved = 0,
                        .self = this,
                        .wait = wait,
                        .mark = mark,
                        .rotate = rotates ? rotate : nullptr,
                        .refused = nullptr};
    CHECK(dkv_port_publish(key, &port) == DKV_OK);
  }
  ~FakeEngine() { CHECK(dkv_engine_withdraw(key) == DKV_OK); }
  FakeEngine(const FakeEngine&) = delete;
  FakeEngine& operator=(const FakeEngine&) = delete;

  void step(std::int64_t turn, const std::vector<std::int64_t>& tickets) const {
    dkv_berth* berth = nullptr;
    CHECK(dkv_engine_lookup(key, &berth) == DKV_OK);
    CHECK(dkv_berth_step(berth, turn, tickets.data(), static_cast<std::uint32_t>(tickets.size())) ==
          DKV_OK);
  }

  static dkv_status wait(void* self, std::int64_t ticket, void* stream) {
    auto* engine = static_cast<FakeEngine*>(self);
    engine->waited.push_back(ticket);
    engine->streams.push_back(stream);
    return engine->answer;
  }
  static dkv_status mark(void* self, std::int64_t turn, std::uint32_t layer, std::uint32_t layers,
                         void* stream) {
    auto* engine = static_cast<FakeEngine*>(self);
    engine->marked.push_back({turn, layer, layers});
    engine->streams.push_back(stream);
    return engine->answer;
  }
  static dkv_status rotate(void* self, const dkv_rotation* rotation, void* stream) {
    auto* engine = static_cast<FakeEngine*>(self);
    engine->rotated.push_back(*rotation);
    engine->streams.push_back(stream);
    return engine->answer;
  }

  const char* key;
};

nvinfer1::PluginTensorDesc tensor(DataType type, std::vector<std::int64_t> shape) {
  nvinfer1::PluginTensorDesc made{};
  made.type = type;
  made.format = TensorFormat::kLINEAR;
  made.dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), made.dims.d);
  return made;
}

NodeFields fields(const char* key) {
  return std::move(NodeFields().text("engine_key", key));
}

void three_creators_of_one_namespace() {
  const Library library(library_path);
  CHECK(library.creators().size() == 3);
  for (const char* name : {"SiKvWait", "SiKvPublish", "SiKvRotate"}) {
    nvinfer1::IPluginCreatorV3One* creator = library.creator(name);
    CHECK(creator != nullptr);
    CHECK(std::strcmp(creator->getPluginVersion(), "1") == 0);
    CHECK(std::strcmp(creator->getPluginNamespace(), "superinfer") == 0);
    const nvinfer1::PluginFieldCollection* names = creator->getFieldNames();
    CHECK(names->nbFields >= 4);
    CHECK(std::strcmp(names->fields[0].name, "engine_key") == 0);
    CHECK(names->fields[0].type == nvinfer1::PluginFieldType::kCHAR);
  }
}

void fields_are_checked_and_named_in_the_log() {
  const Library library(library_path);
  const auto refused = [&](const char* kind, const NodeFields& given, const char* word) {
    CHECK(!library.make(kind, given, TensorRTPhase::kBUILD));
    if (!library.log.says(word)) std::fprintf(stderr, "log: %s\n", library.log.last.c_str());
    CHECK(library.log.says(word));
  };
  refused("SiKvWait", NodeFields(), "engine_key is missing");
  refused("SiKvWait", NodeFields().text("engine_key", ""), "engine_key has 0 bytes");
  refused("SiKvWait", fields(std::string(64, 'k').c_str()), "engine_key has 64 bytes");
  refused("SiKvWait", NodeFields().number("engine_key", 1), "engine_key must be text");
  refused("SiKvWait", fields("e").number("leyer", 1), "\"leyer\"");
  refused("SiKvWait", fields("e").number("layer", -1), "layer is -1");
  refused("SiKvWait", fields("e").number("group", 64), "group is 64, not 0..63");
  refused("SiKvWait", fields("e").number("alias", 2), "alias is 2");
  refused("SiKvWait", fields("e").text("layer", "3"), "layer must be one int32");
  refused("SiKvPublish", fields("e").number("layer", 4).number("layers", 4), "not below layers");
  refused("SiKvRotate", fields("e").number("direction", 2), "direction is 2");
  refused("SiKvRotate", fields("e").number("layer", 0), "\"layer\"");
  refused("SiKvPublish", fields("e").raw({"layer", nullptr, nvinfer1::PluginFieldType::kINT32, 1}),
          "one int32");
  CHECK(library.creator("SiKvWait")->createPlugin("n", nullptr, TensorRTPhase::kBUILD) == nullptr);
}

// TensorRT keeps the bytes of the fields in the plan and gives them back when it is loaded.
void fields_survive_a_plan() {
  const Library library(library_path);
  const Made built = library.make(
      "SiKvPublish", fields("gpu0").number("layer", 31).number("layers", 32).number("alias", 1),
      TensorRTPhase::kBUILD);
  CHECK(built);
  const nvinfer1::PluginFieldCollection* kept = built.runtime->getFieldsToSerialize();
  std::deque<std::vector<char>> plan;
  NodeFields loaded;
  for (std::int32_t index = 0; index < kept->nbFields; ++index) {
    const nvinfer1::PluginField& field = kept->fields[index];
    const std::size_t bytes = static_cast<std::size_t>(field.length) *
                              (field.type == nvinfer1::PluginFieldType::kCHAR ? 1 : 4);
    const auto* data = static_cast<const char*>(field.data);
    const std::vector<char>& copy = plan.emplace_back(data, data + bytes);
    loaded.raw({field.name, copy.data(), field.type, field.length});
  }
  const Made again = library.make("SiKvPublish", loaded, TensorRTPhase::kRUNTIME);
  CHECK(again);
  const nvinfer1::PluginFieldCollection* same = again.runtime->getFieldsToSerialize();
  CHECK(same->nbFields == kept->nbFields);
  for (std::int32_t index = 0; index < kept->nbFields; ++index) {
    CHECK(std::strcmp(same->fields[index].name, kept->fields[index].name) == 0);
    CHECK(same->fields[index].length == kept->fields[index].length);
    CHECK(std::memcmp(same->fields[index].data, kept->fields[index].data,
                      static_cast<std::size_t>(kept->fields[index].length)) == 0);
  }
  CHECK(again.build->getAliasedInput(0) == 0);
  CHECK(again.build->getAliasedInput(1) == -1);
}

void a_token_has_one_element_and_an_alias_the_shape_of_its_input() {
  const Library library(library_path);
  mock::Builder builder;
  const mock::Dimension open(-1);
  const mock::Dimension wide(4096);
  nvinfer1::DimsExprs input{};
  input.nbDims = 2;
  input.d[0] = &open;
  input.d[1] = &wide;
  nvinfer1::DimsExprs output{};
  DataType type{};
  const DataType half = DataType::kHALF;

  const Made token = library.make("SiKvWait", fields("e"), TensorRTPhase::kBUILD);
  CHECK(token.core->getPluginName() == std::string("SiKvWait"));
  CHECK(token.build->getNbOutputs() == 1);
  CHECK(token.build->getOutputShapes(&input, 1, nullptr, 0, &output, 1, builder) == 0);
  CHECK(output.nbDims == 1 && output.d[0]->getConstantValue() == 1);
  CHECK(token.build->getOutputDataTypes(&type, 1, &half, 1) == 0 && type == DataType::kINT32);
  CHECK(token.build->getAliasedInput(0) == -1);

  const Made alias =
      library.make("SiKvWait", fields("e").number("alias", 1), TensorRTPhase::kBUILD);
  CHECK(alias.build->getOutputShapes(&input, 1, nullptr, 0, &output, 1, builder) == 0);
  CHECK(output.nbDims == 2 && output.d[0] == &open && output.d[1] == &wide);
  CHECK(alias.build->getOutputDataTypes(&type, 1, &half, 1) == 0 && type == half);
  CHECK(alias.build->getAliasedInput(0) == 0);

  CHECK(alias.build->getOutputShapes(&input, 3, nullptr, 0, &output, 1, builder) != 0);
  CHECK(alias.build->getOutputShapes(&input, 1, &input, 1, &output, 1, builder) != 0);
}

void rotate_takes_a_plan_of_three_columns() {
  const Library library(library_path);
  mock::Builder builder;
  const mock::Dimension open(-1);
  const mock::Dimension one(1);
  const mock::Dimension three(3);
  const mock::Dimension four(4);
  std::array<nvinfer1::DimsExprs, 3> inputs{};
  inputs[0].nbDims = 1;
  inputs[0].d[0] = &open;
  inputs[1].nbDims = 2;
  inputs[1].d[0] = &open;
  inputs[1].d[1] = &three;
  inputs[2].nbDims = 1;
  inputs[2].d[0] = &one;
  nvinfer1::DimsExprs output{};
  const Made rotate = library.make("SiKvRotate", fields("e"), TensorRTPhase::kBUILD);
  CHECK(rotate.build->getOutputShapes(inputs.data(), 3, nullptr, 0, &output, 1, builder) == 0);
  CHECK(output.nbDims == 1 && output.d[0] == &open);
  CHECK(rotate.build->getAliasedInput(0) == 0);
  inputs[1].d[1] = &four;
  CHECK(rotate.build->getOutputShapes(inputs.data(), 3, nullptr, 0, &output, 1, builder) != 0);
  CHECK(library.log.says("input 1"));
}

void only_linear_tensors_of_the_right_types() {
  const Library library(library_path);
  const Made rotate = library.make("SiKvRotate", fields("e"), TensorRTPhase::kBUILD);
  std::array<nvinfer1::DynamicPluginTensorDesc, 4> tensors{};
  tensors[0].desc = tensor(DataType::kBF16, {8, 4096});
  tensors[1].desc = tensor(DataType::kINT64, {8, 3});
  tensors[2].desc = tensor(DataType::kINT32, {1});
  tensors[3].desc = tensor(DataType::kBF16, {8, 4096});
  const auto fits = [&](std::int32_t at) {
    return rotate.build->supportsFormatCombination(at, tensors.data(), 3, 1);
  };
  for (const std::int32_t at : {0, 1, 2, 3})
    CHECK(fits(at));
  CHECK(!rotate.build->supportsFormatCombination(0, tensors.data(), 2, 1));
  tensors[3].desc.type = DataType::kHALF;  // an alias of a bf16 pool
  CHECK(!fits(3));
  tensors[0].desc.type = DataType::kFLOAT;
  CHECK(!fits(0));
  tensors[1].desc.format = TensorFormat::kCHW32;
  CHECK(!fits(1));

  const Made wait = library.make("SiKvWait", fields("e"), TensorRTPhase::kBUILD);
  tensors[0].desc = tensor(DataType::kFP8, {1});
  tensors[1].desc = tensor(DataType::kINT64, {1});
  tensors[2].desc = tensor(DataType::kINT32, {1});
  for (const std::int32_t at : {0, 1, 2})
    CHECK(wait.build->supportsFormatCombination(at, tensors.data(), 2, 1));
  tensors[1].desc.type = DataType::kINT32;  // a ticket has 64 bits
  CHECK(!wait.build->supportsFormatCombination(1, tensors.data(), 2, 1));
}

// A plugin as an execution context has it: attached, told its shapes.
Made attached(const Library& library, const char* kind, const NodeFields& given,
              const std::vector<nvinfer1::PluginTensorDesc>& inputs, TensorRTPhase phase) {
  const Made loaded = library.make(kind, given, phase);
  CHECK(loaded);
  mock::Resources resources;
  Made made(loaded.runtime->attachToContext(&resources));
  CHECK(made && made.plugin != loaded.plugin);
  const nvinfer1::PluginTensorDesc output = tensor(DataType::kINT32, {1});
  CHECK(made.runtime->onShapeChange(inputs.data(), static_cast<std::int32_t>(inputs.size()),
                                    &output, 1) == 0);
  return made;  // what it was cloned from is gone
}

std::int32_t enqueue(const Made& made, const std::vector<nvinfer1::PluginTensorDesc>& inputs,
                     const std::vector<const void*>& data, std::uintptr_t stream) {
  const nvinfer1::PluginTensorDesc output = tensor(DataType::kINT32, {1});
  std::array<void*, 1> outputs{nullptr};
  return made.runtime->enqueue(inputs.data(), &output, data.data(), outputs.data(), nullptr,
                               reinterpret_cast<cudaStream_t>(stream));
}

void enqueue_asks_the_engine_of_its_name() {
  const Library library(library_path);
  FakeEngine engine("asked");
  FakeEngine other("not asked");
  const std::vector one{tensor(DataType::kHALF, {2, 8})};
  const std::vector two{tensor(DataType::kHALF, {2, 8}), tensor(DataType::kINT64, {1})};
  const std::int64_t ticket = 41;
  const Made wait = attached(library, "SiKvWait", fields("asked").number("group", 1), one,
                             TensorRTPhase::kRUNTIME);
  const Made told = attached(library, "SiKvWait", fields("asked"), two, TensorRTPhase::kRUNTIME);
  const Made publish =
      attached(library, "SiKvPublish", fields("asked").number("layer", 1).number("layers", 2), one,
               TensorRTPhase::kRUNTIME);
  engine.step(5, {7, 8});
  CHECK(enqueue(wait, one, {nullptr}, 0x51) == 0);
  CHECK(enqueue(told, two, {nullptr, &ticket}, 0x52) == 0);
  CHECK(enqueue(publish, one, {nullptr}, 0x53) == 0);
  CHECK((engine.waited == std::vector<std::int64_t>{8, 41}));
  CHECK((engine.marked == std::vector<std::array<std::int64_t, 3>>{{5, 1, 2}}));
  CHECK(engine.streams.size() == 3);
  CHECK(reinterpret_cast<std::uintptr_t>(engine.streams[0]) == 0x51);
  CHECK(reinterpret_cast<std::uintptr_t>(engine.streams[2]) == 0x53);
  CHECK(other.streams.empty());
  engine.step(6, {9});  // one group only: the network's second one has no ticket
  CHECK(enqueue(wait, one, {nullptr}, 0x51) == DKV_OUT_OF_RANGE);
}

void rotate_hands_on_pool_plan_and_limits() {
  const Library library(library_path);
  FakeEngine engine("pool");
  const std::vector inputs{tensor(DataType::kBF16, {6, 2, 64}), tensor(DataType::kINT64, {100, 3}),
                           tensor(DataType::kINT32, {1})};
  const NodeFields given =
      fields("pool").number("direction", DKV_D2H).number("segments_max", 64).number("sms_max", 4);
  const Made rotate = attached(library, "SiKvRotate", given, inputs, TensorRTPhase::kRUNTIME);
  std::array<std::byte, 1> pool{};
  std::array<std::int64_t, 3> plan{};
  std::int32_t count = 0;
  CHECK(enqueue(rotate, inputs, {pool.data(), plan.data(), &count}, 0x51) == 0);
  CHECK(engine.rotated.size() == 1);
  const dkv_rotation& rotation = engine.rotated[0];
  CHECK(rotation.direction == DKV_D2H);
  CHECK(rotation.device_pool == pool.data());
  CHECK(rotation.device_pool_bytes == 6 * 2 * 64 * 2);
  CHECK(rotation.plan == plan.data() && rotation.count == &count);
  CHECK(rotation.segments_max == 64 && rotation.sms_max == 4);
  const Made all = attached(library, "SiKvRotate", fields("pool"), inputs, TensorRTPhase::kRUNTIME);
  CHECK(enqueue(all, inputs, {pool.data(), plan.data(), &count}, 0x51) == 0);
  CHECK(engine.rotated[1].segments_max == 100 && engine.rotated[1].direction == DKV_H2D);
}

void a_builder_that_times_plugins_reaches_no_engine() {
  const Library library(library_path);
  FakeEngine engine("live");
  const std::vector one{tensor(DataType::kHALF, {2, 8})};
  for (const char* kind : {"SiKvWait", "SiKvPublish"}) {
    const Made timed = attached(library, kind, fields("live"), one, TensorRTPhase::kBUILD);
    CHECK(enqueue(timed, one, {nullptr}, 0x51) == 0);
    const Made absent = attached(library, kind, fields("nobody"), one, TensorRTPhase::kBUILD);
    CHECK(enqueue(absent, one, {nullptr}, 0x51) == 0);
  }
  CHECK(engine.streams.empty());
}

void trouble_is_told_in_the_status_and_the_log() {
  const Library library(library_path);
  const std::vector one{tensor(DataType::kHALF, {2, 8})};
  const std::vector three{tensor(DataType::kHALF, {8}), tensor(DataType::kINT64, {1, 3}),
                          tensor(DataType::kINT32, {1})};
  const Made wait = attached(library, "SiKvWait", fields("late"), one, TensorRTPhase::kRUNTIME);
  const Made lenient = attached(library, "SiKvWait", fields("late").number("required", 0), one,
                                TensorRTPhase::kRUNTIME);
  const Made rotate =
      attached(library, "SiKvRotate", fields("late"), three, TensorRTPhase::kRUNTIME);
  CHECK(enqueue(wait, one, {nullptr}, 0x51) == DKV_ABSENT);
  CHECK(library.log.says("\"late\""));
  CHECK(enqueue(lenient, one, {nullptr}, 0x51) == 0);
  {
    FakeEngine engine("late", false);
    engine.step(1, {1});
    CHECK(enqueue(wait, one, {nullptr}, 0x51) == 0);
    engine.answer = DKV_POISONED;
    CHECK(enqueue(wait, one, {nullptr}, 0x51) == DKV_POISONED);
    CHECK(enqueue(lenient, one, {nullptr}, 0x51) == DKV_POISONED);
    CHECK(library.log.says("poisoned"));
    CHECK(enqueue(rotate, three, {nullptr, nullptr, nullptr}, 0x51) == DKV_UNSUPPORTED);
  }
  CHECK(enqueue(wait, one, {nullptr}, 0x51) == DKV_ABSENT);
  FakeEngine next("late");  // the same plugins, the next engine of the name
  next.step(1, {3});
  CHECK(enqueue(wait, one, {nullptr}, 0x51) == 0);
  CHECK((next.waited == std::vector<std::int64_t>{3}));
}

}  // namespace

int main(int count, char** arguments) {
  CHECK(count == 2);
  library_path = arguments[1];
  RUN(three_creators_of_one_namespace);
  RUN(fields_are_checked_and_named_in_the_log);
  RUN(fields_survive_a_plan);
  RUN(a_token_has_one_element_and_an_alias_the_shape_of_its_input);
  RUN(rotate_takes_a_plan_of_three_columns);
  RUN(only_linear_tensors_of_the_right_types);
  RUN(enqueue_asks_the_engine_of_its_name);
  RUN(rotate_hands_on_pool_plan_and_limits);
  RUN(a_builder_that_times_plugins_reaches_no_engine);
  RUN(trouble_is_told_in_the_status_and_the_log);
  return 0;
}

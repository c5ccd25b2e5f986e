// The Python face of the engine: arrays in, plain values out. Nothing is copied silently: arrays of
// another type, shape or layout are refused.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "../../binding/without_gil.hpp"
#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using superinfer::binding::WithoutGil;
using superinfer::cpu::Drawn;
using superinfer::cpu::Dtype;
using superinfer::cpu::Engine;
using superinfer::cpu::RowInput;
using superinfer::cpu::Shape;
using superinfer::cpu::StepInput;

template <class T, std::size_t Dimensions>
using In = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Pool = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Dtype dtype_of(const std::string& name) {
  if (name == "bf16") return Dtype::kBf16;
  if (name == "fp32") return Dtype::kFp32;
  throw std::invalid_argument("dtype: '" + name + "' is not one of bf16, fp32");
}

// Narrow integers from the row table, whose columns are 64 bits wide.
int narrow(std::int64_t value, const char* field) {
  if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max()) {
    throw std::invalid_argument(std::string(field) + ": does not fit 32 bits");
  }
  return static_cast<int>(value);
}

// The engine with the pool it writes to.
class PyEngine {
 public:
  PyEngine(const Shape& shape, Pool pool, const std::string& dtype, int threads,
           const std::string& kernels)
      : pool_(std::move(pool)) {
    check(shape);
    const std::size_t wanted = Engine::block_bytes(shape, dtype_of(dtype));
    if (pool_.shape(1) != wanted) {
      throw std::invalid_argument("pool: blocks are " + std::to_string(pool_.shape(1)) +
                                  " bytes, must be " + std::to_string(wanted));
    }
    engine_ =
        std::make_unique<Engine>(shape, dtype_of(dtype), pool_.data(),
                                 static_cast<std::ptrdiff_t>(pool_.shape(0)), threads, kernels);
  }

  void load_matrix(const std::string& part, int layer, int expert, const In<float, 2>& data) {
    const WithoutGil unlocked;
    engine().load(part, layer, expert, data.data(), static_cast<std::ptrdiff_t>(data.shape(0)),
                  static_cast<std::ptrdiff_t>(data.shape(1)));
  }

  void load_vector(const std::string& part, int layer, const In<float, 1>& data) {
    engine().load(part, layer, 0, data.data(), 1, static_cast<std::ptrdiff_t>(data.shape(0)));
  }

  void finish(const In<float, 1>& frequencies) {
    engine().set_frequencies(frequencies.data(), static_cast<std::ptrdiff_t>(frequencies.shape(0)));
    engine().finish();
  }

  // `reduce` is called with a writable float32 array on a thread of the step.
  void set_reduce(nb::object reduce) {
    reduce_ = std::move(reduce);
    if (reduce_.is_none()) {
      engine().set_reduce({});
    } else {
      engine().set_reduce([this](float* partial, std::ptrdiff_t count) { sum(partial, count); });
    }
  }

  void launch(const In<std::int32_t, 1>& tokens, const In<std::int32_t, 1>& slots,
              const In<std::int64_t, 2>& rows, const In<double, 2>& reals,
              const In<std::uint64_t, 1>& seeds, const In<std::int32_t, 1>& history,
              const In<std::int32_t, 1>& forbidden) {
    const std::size_t count = rows.shape(0);
    if (rows.shape(1) != 9 || reals.shape(0) != count || reals.shape(1) != 6 ||
        seeds.shape(0) != count) {
      throw std::invalid_argument("rows: must be [n, 9] with reals [n, 6] and seeds [n]");
    }
    StepInput input;
    input.tokens.assign(tokens.data(), tokens.data() + tokens.shape(0));
    input.slots.assign(slots.data(), slots.data() + slots.shape(0));
    input.history.assign(history.data(), history.data() + history.shape(0));
    input.forbidden.assign(forbidden.data(), forbidden.data() + forbidden.shape(0));
    input.rows.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t* line = rows.data() + i * 9;
      const double* real = reals.data() + i * 6;
      RowInput& row = input.rows[i];
      row.start = narrow(line[0], "start");
      row.count = narrow(line[1], "count");
      row.slots = narrow(line[2], "slots");
      row.sample = line[3] != 0;
      row.choice.top_k = narrow(line[4], "top_k");
      row.choice.index = static_cast<std::uint64_t>(line[5]);
      row.choice.logprobs = narrow(line[6], "logprobs");
      row.history = narrow(line[7], "history");
      row.forbidden = narrow(line[8], "forbidden");
      row.choice.temperature = static_cast<float>(real[0]);
      row.choice.top_p = real[1];
      row.choice.min_p = real[2];
      row.choice.repetition = static_cast<float>(real[3]);
      row.choice.presence = static_cast<float>(real[4]);
      row.choice.frequency = static_cast<float>(real[5]);
      row.choice.seed = seeds.data()[i];
    }
    engine().launch(std::move(input));
  }

  nb::list collect() {
    std::vector<Drawn> drawn;
    {
      const WithoutGil unlocked;
      drawn = engine().collect();
    }
    nb::list result;
    for (const Drawn& one : drawn) {
      nb::list top;
      for (const auto& [id, logprob] : one.top)
        top.append(nb::make_tuple(id, logprob));
      result.append(nb::make_tuple(one.token, one.logprob, nb::tuple(top)));
    }
    return result;
  }

  nb::object logits(std::size_t index) {
    const float* data = engine().logits(index);
    if (data == nullptr) return nb::none();
    const auto count = static_cast<std::size_t>(engine().shape().vocabulary);
    auto* copy = new float[count];
    std::copy_n(data, count, copy);
    const nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<1>>(copy, {count}, owner));
  }

  // A step that is under way may need the interpreter to end.
  void close() {
    {
      const WithoutGil unlocked;
      engine_.reset();
    }
    reduce_ = nb::none();
  }

  ~PyEngine() { close(); }
  PyEngine(const PyEngine&) = delete;
  PyEngine& operator=(const PyEngine&) = delete;

  Engine& engine() {
    if (!engine_) throw std::logic_error("the engine is closed");
    return *engine_;
  }

 private:
  void sum(float* partial, std::ptrdiff_t count) {
    const nb::gil_scoped_acquire acquire;
    try {
      const auto size = static_cast<std::size_t>(count);
      reduce_(nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<1>>(partial, {size}, nb::handle()),
                       nb::rv_policy::reference));
    } catch (const nb::python_error& error) {  // dies here, where there is an interpreter
      throw std::runtime_error(error.what());
    }
  }

  Pool pool_;  // keeps the arena alive
  nb::object reduce_ = nb::none();
  std::unique_ptr<Engine> engine_;
};

}  // namespace

NB_MODULE(_cpu_engine, m) {
#ifdef NDEBUG
  // A daemon thread that uses an engine when the interpreter ends holds it for ever. That is the
  // program's business; a library prints nothing about it.
  nb::set_leak_warnings(false);
#endif
  superinfer::binding::end_calls_at_exit();
  nb::class_<Shape>(m, "Shape")
      .def(nb::init<>())
      .def_rw("layers", &Shape::layers)
      .def_rw("hidden", &Shape::hidden)
      .def_rw("intermediate", &Shape::intermediate)
      .def_rw("heads", &Shape::heads)
      .def_rw("kv_heads", &Shape::kv_heads)
      .def_rw("head_dim", &Shape::head_dim)
      .def_rw("vocabulary", &Shape::vocabulary)
      .def_rw("context_tokens_max", &Shape::context_tokens_max)
      .def_rw("experts", &Shape::experts)
      .def_rw("experts_per_token", &Shape::experts_per_token)
      .def_rw("block_tokens", &Shape::block_tokens)
      .def_rw("tied_embedding", &Shape::tied_embedding)
      .def_rw("qkv_bias", &Shape::qkv_bias)
      .def_rw("norm_eps", &Shape::norm_eps);
  nb::class_<PyEngine>(m, "Engine")
      .def(nb::init<const Shape&, Pool, const std::string&, int, const std::string&>(), "shape"_a,
           "pool"_a.noconvert(), "dtype"_a, "threads"_a, "kernels"_a)
      .def("load_matrix", &PyEngine::load_matrix, "part"_a, "layer"_a, "expert"_a,
           "data"_a.noconvert())
      .def("load_vector", &PyEngine::load_vector, "part"_a, "layer"_a, "data"_a.noconvert())
      .def("finish", &PyEngine::finish, "frequencies"_a.noconvert())
      .def("set_reduce", &PyEngine::set_reduce, "reduce"_a.none())
      .def("launch", &PyEngine::launch, "tokens"_a.noconvert(), "slots"_a.noconvert(),
           "rows"_a.noconvert(), "reals"_a.noconvert(), "seeds"_a.noconvert(),
           "history"_a.noconvert(), "forbidden"_a.noconvert())
      .def("collect", &PyEngine::collect)
      .def("keep_logits", [](PyEngine& self, bool keep) { self.engine().set_keep_logits(keep); })
      .def("logits", &PyEngine::logits, "index"_a)
      .def("close", &PyEngine::close)
      .def_prop_ro("kernels", [](PyEngine& self) { return self.engine().kernels().name; })
      .def_prop_ro("threads", [](PyEngine& self) { return self.engine().threads(); })
      .def_prop_ro("weight_bytes", [](PyEngine& self) { return self.engine().weight_bytes(); });
  m.def(
      "kernel_sets",
      [](const std::string& dtype) {
        std::vector<std::string> names;
        for (const auto* set : superinfer::cpu::supported_kernels(dtype_of(dtype))) {
          names.emplace_back(set->name);
        }
        return names;
      },
      "dtype"_a);
}

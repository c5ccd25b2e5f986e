// The Python face of DuplexKV: arrays in, tickets out. Thin: every rule lives behind the C header.
#include <nanobind/nanobind.h>

#include "calls.hpp"
#include "engine.hpp"
#include "memory.hpp"

namespace nb = nanobind;
using duplexkv::binding::LinkError;

NB_MODULE(_duplexkv, module) {
#ifdef NDEBUG
  // A daemon thread that uses an engine when the interpreter ends holds it for ever. That is the
  // program's business; a library prints nothing about it.
  nb::set_leak_warnings(false);
#endif
  module.attr("D2H") = static_cast<int>(DKV_D2H);
  module.attr("H2D") = static_cast<int>(DKV_H2D);
  module.attr("EAGER") = static_cast<int>(DKV_EAGER);
  module.attr("DONE") = static_cast<int>(DKV_DONE);
  module.attr("FAILED") = static_cast<int>(DKV_FAILED);
  module.attr("CANCELLED") = static_cast<int>(DKV_CANCELLED);
  const nb::exception<LinkError> link_error(module, "LinkError", PyExc_RuntimeError);
  module.def("version", &dkv_version);
  duplexkv::binding::add_memory(module);
  duplexkv::binding::add_engine(module);
  superinfer::binding::end_calls_at_exit();
}

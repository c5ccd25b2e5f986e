// Both lanes as a Python object, over whole pools or over their parts.
#pragma once

#include <nanobind/nanobind.h>

namespace duplexkv::binding {

void add_engine(nanobind::module_& module);

}  // namespace duplexkv::binding

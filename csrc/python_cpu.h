// Registers the kernels of csrc/cpu in a Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace livereel {

void register_cpu(pybind11::module_& m);

}  // namespace livereel

// Registers the frame ring in a Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace livereel {

void register_ring(const pybind11::module_& m);

}  // namespace livereel

// Registers the torch-free core as livereel.engine.native._core, and does no more.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "philox.h"

namespace py = pybind11;

namespace {

void fill_normal(const py::buffer& out, std::uint64_t seed, std::uint64_t chunk,
                 std::uint32_t step) {
  const py::buffer_info info = out.request(/*writable=*/true);
  if (!info.item_type_is_equivalent_to<float>() || info.ndim != 1 ||
      (info.size > 1 && info.strides[0] != static_cast<py::ssize_t>(sizeof(float)))) {
    throw py::value_error("out must be a contiguous one-dimensional float32 buffer");
  }
  const auto count = static_cast<std::uint64_t>(info.size);
  if (count > livereel::kMaxNormals) {
    throw py::value_error("out holds more than 2^34 numbers");
  }
  const py::gil_scoped_release unlocked;
  livereel::fill_normal(seed, chunk, step, static_cast<float*>(info.ptr), count);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.def("philox4x32_10", &livereel::philox4x32_10, py::arg("counter"), py::arg("key"));
  m.def("fill_normal", &fill_normal, py::arg("out"), py::kw_only(), py::arg("seed"),
        py::arg("chunk"), py::arg("step"));
}

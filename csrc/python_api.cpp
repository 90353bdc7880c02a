// Registers the torch-free core as livereel.engine.native._core, and does no more.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pacer.h"
#include "philox.h"
#include "python_cpu.h"
#include "python_ring.h"
#include "rms_norm_silu.h"
#include "window.h"

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

// A dense matrix [rows, channels] of items as wide as `T`; half precision comes as uint16.
template <typename Item>
py::buffer_info dense_rows(const py::buffer& buffer, bool writable) {
  py::buffer_info info = buffer.request(writable);
  const bool dense = info.ndim == 2 && info.strides[1] == info.itemsize &&
                     (info.shape[0] <= 1 || info.strides[0] == info.shape[1] * info.itemsize);
  if (!info.item_type_is_equivalent_to<Item>() || !dense) {
    throw py::value_error("x and y must be dense [rows, channels] of one type, float32 or uint16");
  }
  return info;
}

template <typename Item, typename Value>
void rms_norm_silu_as(const py::buffer& x, const py::buffer_info& gain, const py::buffer& y) {
  const py::buffer_info from = dense_rows<Item>(x, false);
  const py::buffer_info to = dense_rows<Item>(y, true);
  if (from.shape != to.shape || from.shape[1] != gain.size) {
    throw py::value_error("x and y must have one shape [rows, channels], gain one item a channel");
  }
  const auto rows = static_cast<std::size_t>(from.shape[0]);
  const auto channels = static_cast<std::size_t>(from.shape[1]);
  const py::gil_scoped_release unlocked;
  livereel::rms_norm_silu(static_cast<const Value*>(from.ptr), static_cast<const float*>(gain.ptr),
                          static_cast<Value*>(to.ptr), rows, channels);
}

void rms_norm_silu(const py::buffer& x, const py::buffer& gain, const py::buffer& y) {
  const py::buffer_info gains = gain.request();
  if (!gains.item_type_is_equivalent_to<float>() || gains.ndim != 1 ||
      (gains.size > 1 && gains.strides[0] != static_cast<py::ssize_t>(sizeof(float)))) {
    throw py::value_error("gain must be a contiguous one-dimensional float32 buffer");
  }
  if (x.request().item_type_is_equivalent_to<float>()) {
    rms_norm_silu_as<float, float>(x, gains, y);
  } else {
    rms_norm_silu_as<std::uint16_t, livereel::BFloat16>(x, gains, y);
  }
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.def("philox4x32_10", &livereel::philox4x32_10, py::arg("counter"), py::arg("key"));
  m.def("fill_normal", &fill_normal, py::arg("out"), py::kw_only(), py::arg("seed"),
        py::arg("chunk"), py::arg("step"));
  m.def("rms_norm_silu", &rms_norm_silu, py::arg("x"), py::arg("gain"), py::arg("y"));

  livereel::register_cpu(m);
  livereel::register_ring(m);

  py::class_<livereel::Window>(m, "Window")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>(),
           py::kw_only(), py::arg("sinks"), py::arg("window"), py::arg("chunk"),
           py::arg("anchors") = 0, py::arg("anchor_every") = 1)
      .def_property_readonly("slots", &livereel::Window::slots)
      .def("slot", &livereel::Window::slot, py::arg("frame"))
      .def("visible", &livereel::Window::visible, py::arg("first"))
      .def("anchors_before", &livereel::Window::anchors_before, py::arg("before"));

  py::class_<livereel::Pace>(m, "Pace")
      .def_readonly("optional_work", &livereel::Pace::optional_work)
      .def_readonly("passes", &livereel::Pace::passes)
      .def_readonly("rate", &livereel::Pace::rate);
  py::class_<livereel::Timing>(m, "Timing")
      .def_readonly("lead", &livereel::Timing::lead)
      .def_readonly("jitter", &livereel::Timing::jitter);
  py::class_<livereel::Pacer>(m, "Pacer")
      .def(py::init<double, std::int64_t, bool>(), py::kw_only(), py::arg("rate"), py::arg("chunk"),
           py::arg("adapt"))
      .def("begin", &livereel::Pacer::begin, py::arg("now"), py::kw_only(), py::arg("passes"))
      .def("end", &livereel::Pacer::end, py::arg("now"), py::kw_only(), py::arg("frames"));
}

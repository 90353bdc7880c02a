#include "python_ring.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "frame_ring.h"

namespace py = pybind11;

namespace livereel {
namespace {

using Frame = FrameRing::Frame;

FrameRing::Seconds seconds(double timeout) {
  if (!(timeout >= 0.0)) throw py::value_error("timeout must be a number of seconds from 0 on");
  return FrameRing::Seconds(timeout);
}

bool write(FrameRing& ring, const py::buffer& frame, std::uint64_t tag, double timeout) {
  const py::buffer_info info = frame.request();
  FrameShape shape{static_cast<std::uint32_t>(info.ndim), {}};
  bool dense = info.item_type_is_equivalent_to<std::uint8_t>() && info.ndim >= 1 &&
               info.ndim <= FrameShape::kMaxRank;
  py::ssize_t stride = 1;
  for (py::ssize_t i = info.ndim - 1; dense && i >= 0; --i) {
    const auto dim = static_cast<std::size_t>(i);
    dense = (info.shape[dim] <= 1 || info.strides[dim] == stride) &&
            info.shape[dim] <= std::numeric_limits<std::int32_t>::max();
    shape.dims.at(dim) = static_cast<std::uint32_t>(info.shape[dim]);
    stride *= info.shape[dim];
  }
  if (!dense) throw py::value_error("a frame is a dense uint8 array of one to four dimensions");
  const FrameRing::Seconds patience = seconds(timeout);
  const py::gil_scoped_release unlocked;
  return ring.write(info.ptr, shape, tag, patience);
}

// Frames that Python looks at are shared with the DLPack capsules that were made of them.
std::shared_ptr<Frame> read(FrameRing& ring, double timeout) {
  const FrameRing::Seconds patience = seconds(timeout);
  const py::gil_scoped_release unlocked;
  return ring.read(patience);
}

py::buffer_info buffer_of(const Frame& frame) {
  const FrameShape& shape = frame.shape();
  std::vector<py::ssize_t> dims(shape.dims.begin(), shape.dims.begin() + shape.rank);
  std::vector<py::ssize_t> strides(shape.rank);
  py::ssize_t stride = 1;
  for (std::size_t i = shape.rank; i-- > 0; stride *= dims[i]) strides[i] = stride;
  return {frame.data(),
          1,
          py::format_descriptor<std::uint8_t>::format(),
          static_cast<py::ssize_t>(shape.rank),
          std::move(dims),
          std::move(strides),
          /*readonly=*/true};
}

// What a DLPack tensor of a frame needs beside itself.
struct Lent {
  std::shared_ptr<Frame> frame;
  std::array<std::int64_t, FrameShape::kMaxRank> shape{};
  dlpack::ManagedTensor managed{};
};

py::capsule to_dlpack(const std::shared_ptr<Frame>& frame, const py::kwargs& wishes) {
  if (wishes.contains("copy") && py::bool_(wishes["copy"])) {
    throw py::buffer_error("a frame is lent where it lies; it is not copied");
  }
  auto lent = std::make_unique<Lent>();
  lent->frame = frame;
  const FrameShape& shape = frame->shape();
  std::copy_n(shape.dims.begin(), shape.rank, lent->shape.begin());
  lent->managed.tensor = {
      frame->data(),
      {dlpack::kCpu, 0},
      static_cast<std::int32_t>(shape.rank),
      {dlpack::kUint, 8, 1},
      lent->shape.data(),
      nullptr,
      0,
  };
  lent->managed.context = lent.get();
  lent->managed.deleter = [](dlpack::ManagedTensor* tensor) {
    delete static_cast<Lent*>(tensor->context);
  };
  // Whoever takes the tensor renames the capsule.
  return py::capsule(&lent.release()->managed, "dltensor", [](PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor") == 0) return;
    auto* tensor = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    tensor->deleter(tensor);
  });
}

}  // namespace

void register_ring(const py::module_& m) {
  py::class_<Frame, std::shared_ptr<Frame>>(m, "RingFrame", py::buffer_protocol())
      .def_buffer([](Frame& frame) { return buffer_of(frame); })
      .def_property_readonly("number", &Frame::number)
      .def_property_readonly("tag", &Frame::tag)
      .def("__dlpack__", &to_dlpack)
      .def("__dlpack_device__", [](const Frame&) { return py::make_tuple(dlpack::kCpu, 0); });
  py::class_<FrameRing, std::shared_ptr<FrameRing>>(m, "FrameRing")
      .def_static("create", &FrameRing::create, py::kw_only(), py::arg("slots"),
                  py::arg("slot_bytes"), py::arg("drop_oldest"))
      .def_static("attach", &FrameRing::attach, py::arg("fd"))
      .def("fileno", &FrameRing::fd)
      .def("write", &write, py::arg("frame"), py::kw_only(), py::arg("tag") = 0,
           py::arg("timeout") = 0.0)
      .def("read", &read, py::kw_only(), py::arg("timeout") = 0.0)
      .def_property_readonly("room", &FrameRing::room)
      .def_property_readonly("dropped", &FrameRing::dropped)
      .def_property_readonly("slots", &FrameRing::slots)
      .def_property_readonly("slot_bytes", &FrameRing::slot_bytes);
}

}  // namespace livereel

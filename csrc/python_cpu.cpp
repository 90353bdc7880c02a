#include "python_cpu.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "cpu/attention.h"
#include "cpu/conv.h"
#include "cpu/dot.h"
#include "cpu/linear.h"
#include "cpu/norm.h"
#include "cpu/pixels.h"
#include "cpu/supported.h"
#include "dlpack.h"

namespace py = pybind11;

namespace livereel {
namespace {

// A tensor that a DLPack capsule holds; the capsule stays whose it was and must outlive this.
class Tensor {
 public:
  Tensor(const py::capsule& capsule, const char* name) : name_(name) {
    if (capsule.name() == nullptr || std::string(capsule.name()) != "dltensor") {
      throw py::type_error(name_ + " must be a DLPack capsule that nobody has taken");
    }
    tensor_ = &capsule.get_pointer<dlpack::ManagedTensor>()->tensor;
    if (tensor_->device.type != dlpack::kCpu || tensor_->dtype.lanes != 1) fail("on the CPU");
  }

  [[nodiscard]] std::int64_t ndim() const { return tensor_->ndim; }
  [[nodiscard]] std::size_t size(int dim) const {
    return static_cast<std::size_t>(tensor_->shape[at(dim)]);
  }

  [[nodiscard]] std::ptrdiff_t stride(int dim) const {
    if (tensor_->strides != nullptr) return static_cast<std::ptrdiff_t>(tensor_->strides[at(dim)]);
    std::int64_t stride = 1;
    for (std::int32_t i = at(dim) + 1; i < tensor_->ndim; ++i) stride *= tensor_->shape[i];
    return static_cast<std::ptrdiff_t>(stride);
  }

  [[nodiscard]] std::size_t count() const {
    std::int64_t count = 1;
    for (std::int32_t i = 0; i < tensor_->ndim; ++i) count *= tensor_->shape[i];
    return static_cast<std::size_t>(count);
  }

  // Rows of `width` items. Raises a ValueError where a row has none.
  [[nodiscard]] std::size_t rows(std::size_t width) const {
    check(width > 0, "of rows with items in them");
    return count() / width;
  }

  // Whether the dims from `dim` on lie row-major without gaps.
  [[nodiscard]] bool dense(int dim = 0) const {
    std::ptrdiff_t wanted = 1;
    for (std::int32_t i = tensor_->ndim - 1; i >= dim; --i) {
      if (tensor_->shape[i] != 1 && stride(i) != wanted) return false;
      wanted *= static_cast<std::ptrdiff_t>(tensor_->shape[i]);
    }
    return true;
  }

  [[nodiscard]] BFloat16* halves() const {
    if (tensor_->dtype.code != dlpack::kBfloat || tensor_->dtype.bits != 16) fail("bfloat16");
    return static_cast<BFloat16*>(data());
  }

  [[nodiscard]] float* floats() const {
    if (tensor_->dtype.code != dlpack::kFloat || tensor_->dtype.bits != 32) fail("float32");
    return static_cast<float*>(data());
  }

  // Raises a ValueError that says what was wanted.
  [[noreturn]] void fail(const std::string& wanted) const {
    std::string shape;
    for (std::int32_t i = 0; i < tensor_->ndim; ++i) {
      shape += (i == 0 ? "" : ", ") + std::to_string(tensor_->shape[i]);
    }
    throw py::value_error(name_ + " must be " + wanted + "; got shape [" + shape + "]");
  }

  void check(bool right, const char* wanted) const {
    if (!right) fail(wanted);
  }

 private:
  [[nodiscard]] std::int32_t at(int dim) const {
    check(dim < tensor_->ndim && -dim <= tensor_->ndim, "of more dimensions");
    return dim < 0 ? tensor_->ndim + dim : dim;
  }
  [[nodiscard]] void* data() const {
    return static_cast<char*>(tensor_->data) + tensor_->byte_offset;
  }

  std::string name_;
  const dlpack::Tensor* tensor_;
};

using Maybe = std::optional<py::capsule>;

// Floats [count], or null where there are none.
const float* floats(const Maybe& capsule, const char* name, std::size_t count) {
  if (!capsule) return nullptr;
  const Tensor tensor(*capsule, name);
  tensor.check(tensor.dense() && tensor.count() == count, "dense, an item for each output");
  return tensor.floats();
}

cpu::PackedMatrix pack(const py::capsule& weights) {
  const Tensor w(weights, "weights");
  w.check(w.ndim() == 3 && w.size(1) % 2 == 0 && w.count() > 0,
          "[outputs, depth, taps] with an even depth");
  return {w.halves(), w.size(0), w.size(2), w.size(1), w.stride(0), w.stride(2), w.stride(1)};
}

void linear(const py::capsule& x, const cpu::PackedMatrix& weights, const py::capsule& y,
            const Maybe& bias, bool gelu, const Maybe& residual, const Maybe& gate, int threads) {
  const Tensor from(x, "x"), to(y, "y");
  const std::size_t rows = from.rows(weights.depth());
  from.check(from.dense() && from.size(-1) == weights.depth() && weights.taps() == 1,
             "dense, as wide as the weights are deep");
  to.check(to.dense() && to.count() == rows * weights.outputs(), "dense, of x's rows");
  cpu::Epilogue epilogue;
  epilogue.bias = floats(bias, "bias", weights.outputs());
  epilogue.gelu = gelu;
  if (residual) {
    const Tensor before(*residual, "residual");
    before.check(before.dense() && before.count() == to.count(), "dense, of the size of y");
    epilogue.residual = before.halves();
  }
  if (gate) {
    const Tensor gates(*gate, "gate");
    const std::size_t count = gates.rows(weights.outputs());
    gates.check(gates.dense() && count > 0 && count * weights.outputs() == gates.count() &&
                    rows % count == 0,
                "dense, as wide as y, its rows a part of those of y");
    epilogue.gate = gates.floats();
    epilogue.gate_rows = rows / count;
  }
  const BFloat16* in = from.halves();
  BFloat16* out = to.halves();
  const py::gil_scoped_release unlocked;
  cpu::linear(in, rows, weights, epilogue, out, threads);
}

void layer_norm(const py::capsule& x, const py::capsule& scale, const py::capsule& shift,
                const py::capsule& y, float offset, float eps, int threads) {
  const Tensor from(x, "x"), scales(scale, "scale"), shifts(shift, "shift"), to(y, "y");
  const std::size_t width = from.size(-1), rows = from.rows(width);
  const std::size_t gains = scales.rows(width);
  from.check(from.dense(), "dense");
  to.check(to.dense() && to.count() == from.count(), "dense, of the size of x");
  scales.check(scales.dense() && gains > 0 && gains * width == scales.count() && rows % gains == 0,
               "dense, as wide as x, its rows a part of those of x");
  shifts.check(shifts.dense() && shifts.count() == scales.count(), "as large as scale");
  const BFloat16* in = from.halves();
  BFloat16* out = to.halves();
  const float *gain = scales.floats(), *bias = shifts.floats();
  const py::gil_scoped_release unlocked;
  cpu::layer_norm(in, rows, width, gain, bias, rows / gains, offset, eps, out, threads);
}

cpu::Rotation rotation_of(const py::capsule& cos, const py::capsule& sin, std::size_t width) {
  const Tensor cosines(cos, "cos"), sines(sin, "sin");
  const std::size_t head = cosines.size(-1);
  cosines.check(cosines.dense() && cosines.count() > 0 && head % 2 == 0 && width % head == 0,
                "dense [positions, ..., head], an even part of x's width");
  sines.check(sines.dense() && sines.count() == cosines.count(), "as large as cos");
  return {cosines.floats(), sines.floats(), cosines.rows(head), head};
}

// Dense, `count` halves, or null where there are none.
BFloat16* halves(const Maybe& capsule, const char* name, std::size_t count) {
  if (!capsule) return nullptr;
  const Tensor tensor(*capsule, name);
  tensor.check(tensor.dense() && tensor.count() == count, "dense, of the size of x");
  return tensor.halves();
}

void rms_norm(const py::capsule& x, const py::capsule& gain, float eps, const py::capsule& y,
              int threads) {
  const Tensor from(x, "x");
  const std::size_t width = from.size(-1), rows = from.rows(width);
  from.check(from.dense(), "dense");
  const cpu::NormRotate job{
      from.halves(),
      static_cast<std::ptrdiff_t>(width),
      floats(gain, "gain", width),
      halves(y, "y", from.count()),
      nullptr,
  };
  const py::gil_scoped_release unlocked;
  cpu::rms_norm_rotate({job}, rows, width, eps, cpu::Rotation(), threads);
}

void rotate(const py::capsule& x, const py::capsule& cos, const py::capsule& sin,
            const py::capsule& y, int threads) {
  const Tensor from(x, "x");
  from.check(from.dense(), "dense [..., heads, head]");
  const std::size_t width = from.size(-1) * from.size(-2), rows = from.rows(width);
  const cpu::Rotation rotation = rotation_of(cos, sin, width);
  from.check(rotation.head == from.size(-1), "of heads as wide as cos");
  const cpu::NormRotate job{
      from.halves(), static_cast<std::ptrdiff_t>(width), nullptr,
      nullptr,       halves(y, "y", from.count()),
  };
  const py::gil_scoped_release unlocked;
  cpu::rms_norm_rotate({job}, rows, width, 0.0f, rotation, threads);
}

void qk_norm_rotate(const py::capsule& qkv, const py::capsule& q_gain, const py::capsule& k_gain,
                    float eps, const py::capsule& cos, const py::capsule& sin, const py::capsule& q,
                    const py::capsule& k, const py::capsule& k_rotated, int threads) {
  const Tensor from(qkv, "qkv");
  from.check(from.ndim() == 2 && from.dense() && from.size(1) % 3 == 0, "dense [rows, 3 width]");
  const std::size_t rows = from.size(0), width = from.size(1) / 3, count = rows * width;
  const auto stride = static_cast<std::ptrdiff_t>(3 * width);
  const std::vector<cpu::NormRotate> jobs{
      {from.halves(), stride, floats(q_gain, "q_gain", width), nullptr, halves(q, "q", count)},
      {
          from.halves() + width,
          stride,
          floats(k_gain, "k_gain", width),
          halves(k, "k", count),
          halves(k_rotated, "k_rotated", count),
      },
  };
  const cpu::Rotation rotation = rotation_of(cos, sin, width);
  const py::gil_scoped_release unlocked;
  cpu::rms_norm_rotate(jobs, rows, width, eps, rotation, threads);
}

// [tokens, heads, width], each token's head dense.
cpu::Heads heads_of(const Tensor& tensor, std::size_t heads, std::size_t width) {
  tensor.check(tensor.ndim() == 3 && tensor.size(1) == heads && tensor.size(2) == width &&
                   (width == 1 || tensor.stride(2) == 1),
               "[tokens, heads, width] with q's heads, each dense");
  return {tensor.halves(), tensor.size(0), tensor.stride(0), tensor.stride(1)};
}

void attention(const py::capsule& q, const std::vector<py::capsule>& keys,
               const std::vector<py::capsule>& values, const py::capsule& out, int threads) {
  const Tensor queries(q, "q");
  queries.check(queries.ndim() == 3 && queries.size(2) % 2 == 0, "[tokens, heads, an even width]");
  const std::size_t heads = queries.size(1), width = queries.size(2);
  const cpu::Heads from = heads_of(queries, heads, width);
  const cpu::Heads to = heads_of(Tensor(out, "out"), heads, width);
  std::vector<cpu::Heads> k, v;
  for (const py::capsule& piece : keys) k.push_back(heads_of(Tensor(piece, "k"), heads, width));
  for (const py::capsule& piece : values) v.push_back(heads_of(Tensor(piece, "v"), heads, width));
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < k.size(); ++i) {
    tokens += k[i].tokens;
    if (k.size() != v.size() || v[i].tokens != k[i].tokens) {
      throw py::value_error("keys and values must have pieces of the same lengths");
    }
  }
  if (to.tokens != from.tokens) throw py::value_error("out must have q's tokens");
  if (tokens == 0) throw py::value_error("there must be a key to attend to");
  const py::gil_scoped_release unlocked;
  cpu::attention(from, k, v, heads, width, to, threads);
}

cpu::Frames frames_of(const Tensor& tensor) {
  tensor.check(tensor.ndim() == 4 && tensor.dense(), "dense [frames, height, width, channels]");
  return {tensor.halves(), tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)};
}

void pad(const py::capsule& x, const Maybe& past, const Maybe& gain, const py::capsule& out,
         const Maybe& kept, int threads) {
  const cpu::Frames from = frames_of(Tensor(x, "x"));
  const Tensor padded(out, "out");
  const cpu::Frames to = frames_of(padded);
  padded.check(to.frames >= from.frames && to.height >= from.height && to.width >= from.width &&
                   to.channels == from.channels,
               "at least as large as x, of its channels");
  const std::size_t history = to.frames - from.frames;
  const std::size_t count = history * from.height * from.width * from.channels;
  const BFloat16* before = halves(past, "past", count);
  BFloat16* after = halves(kept, "kept", count);
  if (history > 0 && after == nullptr) throw py::value_error("newest frames must be kept");
  const float* gains = floats(gain, "gain", from.channels);
  const py::gil_scoped_release unlocked;
  cpu::pad(from, before, gains, to, after, threads);
}

// `taps` are (frame, row, column) from the first that the kernel sees.
void convolve(const py::capsule& x, const cpu::PackedMatrix& weights,
              const std::vector<std::array<std::size_t, 3>>& taps, const Maybe& bias,
              const Maybe& residual, const py::capsule& out, int threads) {
  const Tensor padded(x, "x"), target(out, "out");
  const cpu::Frames from = frames_of(padded);
  target.check(target.ndim() == 4 && target.size(3) == weights.outputs() &&
                   (target.size(3) == 1 || target.stride(3) == 1),
               "[frames, height, width, outputs], each pixel dense");
  padded.check(from.channels == weights.depth() && taps.size() == weights.taps(),
               "as deep as the weights");
  std::vector<cpu::Tap> places;
  for (const auto& [frame, row, column] : taps) {
    const auto fits = [](std::size_t tap, std::size_t side, std::size_t whole) {
      return side <= whole && tap <= whole - side;
    };
    padded.check(fits(frame, target.size(0), from.frames) &&
                     fits(row, target.size(1), from.height) &&
                     fits(column, target.size(2), from.width),
                 "large enough for all taps");
    places.push_back({
        static_cast<std::ptrdiff_t>(frame),
        static_cast<std::ptrdiff_t>(row),
        static_cast<std::ptrdiff_t>(column),
    });
  }
  const cpu::Conv conv{
      &weights,       places.data(),  floats(bias, "bias", weights.outputs()),
      target.size(0), target.size(1), target.size(2),
  };
  const BFloat16* before = nullptr;
  if (residual) {
    const Tensor added(*residual, "residual");
    for (int i = 0; i < 4; ++i) {
      added.check(added.ndim() == 4 && added.size(i) == target.size(i) &&
                      (added.size(i) == 1 || added.stride(i) == target.stride(i)),
                  "of the shape and layout of out");
    }
    before = added.halves();
  }
  const cpu::Pixels pixels{target.halves(), target.stride(0), target.stride(1), target.stride(2)};
  const py::gil_scoped_release unlocked;
  cpu::convolve(from, conv, before, pixels, threads);
}

void unfold(const py::capsule& x, const py::capsule& y, int threads) {
  const Tensor folded(x, "x"), pixels(y, "y");
  const cpu::Frames from = frames_of(folded), to = frames_of(pixels);
  const std::size_t patch = from.height == 0 ? 0 : to.height / from.height;
  pixels.check(to.frames == from.frames && to.height == from.height * patch &&
                   to.width == from.width * patch && to.channels == 3 &&
                   from.channels == 3 * patch * patch,
               "[frames, height * patch, width * patch, 3]");
  const py::gil_scoped_release unlocked;
  cpu::unfold(from.data, from.frames * from.height, from.width, patch, to.data, threads);
}

void to_bytes(const py::capsule& x, const py::buffer& y, int threads) {
  const Tensor from(x, "x");
  const py::buffer_info to = y.request(/*writable=*/true);
  from.check(from.dense(), "dense");
  if (!to.item_type_is_equivalent_to<std::uint8_t>() || to.ndim != 1 ||
      static_cast<std::size_t>(to.size) != from.count() || (to.size > 1 && to.strides[0] != 1)) {
    throw py::value_error("y must be a contiguous one-dimensional uint8 buffer of the size of x");
  }
  const BFloat16* in = from.halves();
  const py::gil_scoped_release unlocked;
  cpu::to_bytes(in, from.count(), static_cast<std::uint8_t*>(to.ptr), threads);
}

}  // namespace

void register_cpu(py::module_& m) {
  py::class_<cpu::PackedMatrix>(m, "PackedMatrix")
      .def(py::init(&pack), py::arg("weights"))
      .def_property_readonly("outputs", &cpu::PackedMatrix::outputs)
      .def_property_readonly("depth", &cpu::PackedMatrix::depth)
      .def_property_readonly("taps", &cpu::PackedMatrix::taps);
  m.def("linear", &linear, py::arg("x"), py::arg("weights"), py::arg("y"), py::arg("bias"),
        py::arg("gelu"), py::arg("residual"), py::arg("gate"), py::arg("threads"));
  m.def("layer_norm", &layer_norm, py::arg("x"), py::arg("scale"), py::arg("shift"), py::arg("y"),
        py::arg("offset"), py::arg("eps"), py::arg("threads"));
  m.def("rms_norm", &rms_norm, py::arg("x"), py::arg("gain"), py::arg("eps"), py::arg("y"),
        py::arg("threads"));
  m.def("rotate", &rotate, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("y"),
        py::arg("threads"));
  m.def("qk_norm_rotate", &qk_norm_rotate, py::arg("qkv"), py::arg("q_gain"), py::arg("k_gain"),
        py::arg("eps"), py::arg("cos"), py::arg("sin"), py::arg("q"), py::arg("k"),
        py::arg("k_rotated"), py::arg("threads"));
  m.def("attention", &attention, py::arg("q"), py::arg("keys"), py::arg("values"), py::arg("out"),
        py::arg("threads"));
  m.def("pad", &pad, py::arg("x"), py::arg("past"), py::arg("gain"), py::arg("out"),
        py::arg("kept"), py::arg("threads"));
  m.def("convolve", &convolve, py::arg("x"), py::arg("weights"), py::arg("taps"), py::arg("bias"),
        py::arg("residual"), py::arg("out"), py::arg("threads"));
  m.def("unfold", &unfold, py::arg("x"), py::arg("y"), py::arg("threads"));
  m.def("to_bytes", &to_bytes, py::arg("x"), py::arg("y"), py::arg("threads"));
  m.def("dot_supported", &cpu::supported);
}

}  // namespace livereel

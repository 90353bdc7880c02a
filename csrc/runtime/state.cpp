#include "state.h"

#include <array>
#include <charconv>
#include <limits>
#include <utility>

#include "graph.h"
#include "livereel/error.h"
#include "safetensors.h"

namespace livereel {
namespace {

constexpr const char* kFormat = "livereel.runtime 2";

// What a ring holds: keys and values, or latents.
constexpr std::array<const char*, 3> kRing = {"ring.k", "ring.v", "ring.latents"};

const char* name_of(at::ScalarType type) {
  if (type == at::kDouble) return "F64";
  if (type == at::kBFloat16) return "BF16";
  if (type == at::kLong) return "I64";
  return type == at::kHalf ? "F16" : "F32";
}

TensorView view_of(const at::Tensor& tensor) {
  TensorView view;
  view.dtype = name_of(tensor.scalar_type());
  view.shape = tensor.sizes().vec();
  view.data = {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
  return view;
}

template <typename Number>
Number number_of(const Safetensors& content, const char* name) {
  const auto found = content.metadata.find(name);
  Number number = 0;
  if (found != content.metadata.end()) {
    const std::string& text = found->second;
    const char* const end = text.data() + text.size();
    const auto [ptr, error] = std::from_chars(text.data(), end, number);
    if (ptr == end && error == std::errc() && std::in_range<std::uint64_t>(number)) return number;
  }
  throw Error(Status::kPackage, std::string("the snapshot's ") + name + " cannot be read");
}

at::Tensor tensor_of(const Safetensors& content, const std::string& name) {
  const auto found = content.tensors.find(name);
  return found == content.tensors.end() ? at::Tensor() : to_tensor(found->second);
}

}  // namespace

std::vector<std::byte> save_state(const State& state, const std::string& model) {
  Safetensors content;
  content.metadata = {{"format", kFormat},
                      {"model", model},
                      {"seed", std::to_string(state.seed)},
                      {"steps", std::to_string(state.steps)},
                      {"chunk", std::to_string(state.chunk)},
                      {"latent", std::to_string(state.latent)},
                      {"pts", std::to_string(state.pts)},
                      {"track_at", std::to_string(state.track_at)}};
  std::vector<std::pair<std::string, at::Tensor>> tensors = {
      {"text", state.text}, {"pending", state.pending}, {"track", state.track}};
  for (std::size_t i = 0; i < state.ring.size(); ++i) {
    tensors.emplace_back(kRing.at(state.ring.size() == 1 ? 2 : i), state.ring[i]);
  }
  for (std::size_t i = 0; i < state.caches.size(); ++i) {
    tensors.emplace_back("cache." + std::to_string(i), state.caches[i]);
  }
  for (auto& [name, tensor] : tensors) {
    if (!tensor.defined()) continue;
    tensor = tensor.cpu().contiguous();  // and kept until it is copied
    content.tensors.emplace(name, view_of(tensor));
  }
  return write_safetensors(content);
}

State load_state(std::span<const std::byte> bytes, const std::string& model) {
  const Safetensors content = read_safetensors(bytes);
  const auto told = [&](const char* name) {
    const auto found = content.metadata.find(name);
    return found == content.metadata.end() ? std::string() : found->second;
  };
  if (told("format") != kFormat) throw Error(Status::kPackage, "these bytes are no snapshot");
  if (told("model") != model) {
    throw Error(Status::kPackage, "the snapshot belongs to model " + told("model").substr(0, 40) +
                                      "; this package is " + model);
  }
  State state;
  state.seed = number_of<std::uint64_t>(content, "seed");
  state.steps = number_of<std::int64_t>(content, "steps");
  state.chunk = number_of<std::int64_t>(content, "chunk");
  state.latent = number_of<std::int64_t>(content, "latent");
  state.pts = number_of<std::int64_t>(content, "pts");
  state.text = tensor_of(content, "text");
  for (const char* name : kRing) {
    if (const at::Tensor part = tensor_of(content, name); part.defined())
      state.ring.push_back(part);
  }
  state.pending = tensor_of(content, "pending");
  state.track = tensor_of(content, "track");
  state.track_at = number_of<std::int64_t>(content, "track_at");
  for (at::Tensor cache = tensor_of(content, "cache.0"); cache.defined();
       cache = tensor_of(content, "cache." + std::to_string(state.caches.size()))) {
    state.caches.push_back(cache);
  }
  return state;
}

}  // namespace livereel

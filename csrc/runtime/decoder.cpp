#include "decoder.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <utility>

#include "livereel/error.h"

namespace livereel {
namespace {

// The VAE's own cut, where it has one: what is left over joins the first call. Any other cut gives
// the same elsewhere.
std::vector<std::int64_t> cut(const Manifest& manifest, std::int64_t total, bool start) {
  const std::int64_t size = manifest.latent.vae_chunk, chunk = manifest.stream.chunk_latents;
  if (size > 0) {
    std::vector<std::int64_t> lengths(
        static_cast<std::size_t>(std::max<std::int64_t>(1, total / size)), size);
    lengths[0] = total < size ? total : size + (total % size);
    return lengths;
  }
  std::vector<std::int64_t> lengths;
  if (start) lengths.push_back(1);
  std::int64_t left = total - std::ssize(lengths);
  for (; left >= chunk; left -= chunk) lengths.push_back(chunk);
  lengths.insert(lengths.end(), static_cast<std::size_t>(left), 1);
  return lengths;
}

}  // namespace

Decoder::Decoder(const Package& package, const std::filesystem::path& unpack_to, at::Device device)
    : manifest_(package.manifest) {
  const std::vector<Call> first = calls(manifest_.stream.first_chunk_latents, true);
  const std::vector<Call> later = calls(manifest_.stream.chunk_latents, false);
  check(first, true);
  check(later, false);
  std::vector<std::string> names;
  for (const std::vector<Call>& some : {first, later}) {
    for (const Call& call : some) {
      if (std::ranges::find(names, call.graph) == names.end()) names.push_back(call.graph);
    }
  }
  graphs_ = Graphs(package, names, unpack_to, device);
}

std::vector<Decoder::Call> Decoder::calls(std::int64_t latents, bool start) const {
  std::vector<Call> calls;
  for (const std::int64_t count : cut(manifest_, latents, start)) {
    const bool first = start && calls.empty();
    const auto fits = [&](const auto& entry) {
      const auto& [name, graph] = entry;
      return name.starts_with("vae_decode") && name.starts_with("vae_decode_first") == first &&
             !graph.inputs.empty() && graph.inputs[0].shape.size() == 5 &&
             graph.inputs[0].shape[2] == count;
    };
    const auto found = std::ranges::find_if(manifest_.graphs, fits);
    if (found == manifest_.graphs.end()) {
      throw Error(Status::kPackage,
                  "no vae_decode graph takes " + std::to_string(count) + " latent frames");
    }
    calls.push_back({found->first, count});
  }
  return calls;
}

void Decoder::check(const std::vector<Call>& calls, bool start) const {
  const LatentSpec& latent = manifest_.latent;
  for (const auto& [name, count] : calls) {
    const bool first = start && &name == &calls.front().graph;
    const std::int64_t frames =
        (count * latent.temporal_factor) - (first ? latent.temporal_factor - 1 : 0);
    const GraphSpec& graph = manifest_.graph(name);
    check_names(name, graph.inputs, {"latent"}, true);
    check_names(name, graph.outputs, {"frames"}, true);
    check_shape(name + "'s latent", graph.inputs[0].shape,
                {1, latent.channels, count, latent.height, latent.width});
    check_shape(name + "'s output", graph.outputs[0].shape,
                {1, 3, frames, manifest_.stream.height, manifest_.stream.width});
  }
}

std::span<const TensorSpec> Decoder::caches() const {
  const std::string name = calls(manifest_.stream.chunk_latents, false)[0].graph;
  return std::span(manifest_.graph(name).inputs).subspan(1);
}

at::Tensor Decoder::decode(std::vector<at::Tensor>& caches, const at::Tensor& latents) const {
  std::vector<at::Tensor> parts;
  std::int64_t at = 0;
  for (const auto& [name, count] : calls(latents.size(2), caches.empty())) {
    std::vector<at::Tensor> inputs = {latents.narrow(2, at, count)};
    inputs.insert(inputs.end(), caches.begin(), caches.end());
    std::vector<at::Tensor> made = graphs_.at(name)(std::move(inputs));
    parts.push_back(made[0]);
    caches.assign(made.begin() + 1, made.end());
    at += count;
  }
  return parts.size() > 1 ? at::cat(parts, 2) : parts[0];
}

}  // namespace livereel

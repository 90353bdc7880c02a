#include "denoiser.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "livereel/error.h"

namespace livereel {
namespace {

constexpr std::int64_t kMaxState = std::int64_t{1} << 40;  // numbers in the ring

using Shape = std::vector<std::int64_t>;

Window window_of(const Recipe& recipe) {
  return {recipe.sinks, recipe.window, recipe.chunk_latents, recipe.anchors, recipe.anchor_every};
}

bool looks_at_latents(const Manifest& manifest) {
  return std::ranges::any_of(manifest.graph("denoise").inputs,
                             [](const TensorSpec& input) { return input.name == "past"; });
}

std::vector<std::string> graphs_of(const Manifest& manifest) {
  if (looks_at_latents(manifest)) return {"denoise_first", "denoise"};
  return {"text_kv", "denoise_first", "denoise"};
}

}  // namespace

Denoiser::Denoiser(const Package& package, const std::filesystem::path& unpack_to,
                   at::Device device)
    : manifest_(package.manifest),
      looks_at_latents_(looks_at_latents(manifest_)),
      frames_at_(looks_at_latents_ ? 2 : 1),
      window_(window_of(manifest_.stream)),
      device_(device) {
  check_graphs();
  graphs_ = Graphs(package, graphs_of(manifest_), unpack_to, device);
}

void Denoiser::check_graphs() const {
  const Recipe& stream = manifest_.stream;
  const LatentSpec& latent = manifest_.latent;
  const GraphSpec& first = manifest_.graph("denoise_first");
  const GraphSpec& denoise = manifest_.graph("denoise");
  const Shape text = {1, stream.max_sequence_length, latent.text_width};
  std::vector<std::string> inputs = {"latent", "timestep"}, outputs = {"flow"};
  if (looks_at_latents_) {
    inputs.emplace_back("text");
  } else {
    const GraphSpec& text_kv = manifest_.graph("text_kv");
    check_names("text_kv", text_kv.inputs, {"text"}, false);
    check_names("text_kv", text_kv.outputs, {"text_k", "text_v"}, false);
    check_shape("text", text_kv.inputs[0].shape, text);
    inputs.insert(inputs.end(), {"text_k", "text_v"});
    outputs.insert(outputs.end(), {"k", "v"});
  }
  check_names("denoise_first", first.inputs, inputs, false);
  check_names("denoise_first", first.outputs, outputs, false);
  const std::size_t past = inputs.size();
  if (looks_at_latents_) {
    inputs.emplace_back("past");
  } else {
    inputs.insert(inputs.end(), {"past_k", "past_v"});
  }
  inputs.emplace_back("positions");
  check_names("denoise", denoise.inputs, inputs, false);
  check_names("denoise", denoise.outputs, outputs, false);
  const auto latents = [&](std::int64_t more, std::int64_t frames) {
    return Shape{1, latent.channels + more, frames, latent.height, latent.width};
  };
  const auto check_latents = [&](const std::string& name, const GraphSpec& graph,
                                 std::int64_t frames) {
    check_shape(name + "'s latent", graph.inputs[0].shape, latents(stream.told_channels(), frames));
    check_shape(name + "'s flow", graph.outputs[0].shape, latents(0, frames));
    if (looks_at_latents_) check_shape(name + "'s text", graph.inputs[2].shape, text);
  };
  check_latents("denoise_first", first, stream.first_chunk_latents);
  check_latents("denoise", denoise, stream.chunk_latents);
  check_shape("denoise's positions", denoise.inputs.back().shape,
              {latent.past + stream.chunk_latents});
  if (looks_at_latents_) {
    check_shape("denoise's past", denoise.inputs[past].shape,
                latents(stream.told_channels(), latent.past));
  }
  check_past(denoise.inputs[past].shape);
}

void Denoiser::check_past(const Shape& past) const {
  const Recipe& stream = manifest_.stream;
  const LatentSpec& latent = manifest_.latent;
  std::int64_t seen = stream.sinks + stream.anchors + stream.window - stream.chunk_latents;
  if (looks_at_latents_) seen -= (seen + stream.chunk_latents) % latent.temporal_patch;
  const Shape& own = manifest_.graph("denoise").outputs[ring_size() - 1].shape;
  if (own.size() != 5 || past.size() != 5 || seen > latent.past) {
    throw Error(Status::kPackage, "denoise's past does not fit the stream's window");
  }
  const Shape shape = ring_shape();
  std::int64_t frame = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) frame *= i == frames_at_ ? 1 : shape[i];
  if (frame > kMaxState / window_.slots()) {
    throw Error(Status::kMemory, "the stream's window is larger than any machine's memory");
  }
}

Prompt Denoiser::prompt(const at::Tensor& text) const {
  if (looks_at_latents_) return {text};
  return graphs_.at("text_kv")({text});
}

Shape Denoiser::ring_shape() const {
  Shape shape = manifest_.graph("denoise").outputs[ring_size() - 1].shape;  // k's, or the flow's
  if (looks_at_latents_) shape[1] += manifest_.stream.told_channels();
  shape[frames_at_] = window_.slots();
  return shape;
}

at::Tensor Denoiser::gathered(const at::Tensor& ring, const Shape& seen) const {
  const std::int64_t missing = manifest_.latent.past - std::ssize(seen);
  Shape slots;
  for (const std::int64_t frame : seen) slots.push_back(window_.slot(frame));
  if (!looks_at_latents_) slots.insert(slots.end(), static_cast<std::size_t>(missing), 0);
  const auto dim = static_cast<std::int64_t>(frames_at_);
  at::Tensor found = at::index_select(ring, dim, at::tensor(slots).to(device_));
  if (!looks_at_latents_) return found;
  found = found.to(at::kFloat);
  if (missing == 0) return found;
  Shape shape = found.sizes().vec();
  shape[frames_at_] = missing;
  return at::cat({at::zeros(shape, found.options()), found}, dim);
}

Denoiser::Pass Denoiser::at(const Ring& ring, std::int64_t first, std::int64_t count,
                            const Prompt& prompt) const {
  Shape seen = window_.visible(first);
  if (looks_at_latents_) {
    // Patches in time join the past and the chunk.
    const std::int64_t over = (std::ssize(seen) + count) % manifest_.latent.temporal_patch;
    if (over > std::ssize(seen)) {
      throw Error(Status::kPackage, "the model's chunks are no multiple of its patches in time");
    }
    seen.erase(seen.begin(), seen.begin() + over);
  }
  const bool alone = seen.empty() && count == manifest_.stream.first_chunk_latents;
  std::vector<at::Tensor> given = prompt;
  if (!alone) {
    for (const at::Tensor& part : ring) given.push_back(gathered(part, seen));
    Shape positions(static_cast<std::size_t>(manifest_.latent.past + count), -1);
    const auto own = positions.end() - count;
    const auto past = looks_at_latents_ ? own - std::ssize(seen) : positions.begin();
    for (std::int64_t i = 0; i < std::ssize(seen); ++i) past[i] = i;
    for (std::int64_t i = 0; i < count; ++i) own[i] = std::ssize(seen) + i;
    given.push_back(at::tensor(positions).to(device_));
  }
  return [this, alone, given](const at::Tensor& latents, double timestep) {
    const auto time = at::TensorOptions(at::kFloat).device(device_);
    std::vector<at::Tensor> inputs = {latents, at::full({1}, timestep, time)};
    inputs.insert(inputs.end(), given.begin(), given.end());
    return graphs_.at(alone ? "denoise_first" : "denoise")(std::move(inputs));
  };
}

void Denoiser::remember(const Ring& ring, std::int64_t first, const at::Tensor& latents,
                        const Prompt& prompt) const {
  const std::int64_t count = latents.size(2);
  const auto frames = static_cast<std::int64_t>(frames_at_);
  std::vector<at::Tensor> made = {latents};
  if (!looks_at_latents_) {
    made = at(ring, first, count, prompt)(latents, manifest_.stream.context_noise);
    made.erase(made.begin());
  }
  for (std::size_t part = 0; part < ring.size(); ++part) {
    for (std::int64_t i = 0; i < count; ++i) {
      ring[part].select(frames, window_.slot(first + i)).copy_(made[part].select(frames, i));
    }
  }
}

}  // namespace livereel

#include "model.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "livereel/error.h"
#include "philox.h"
#include "solver.h"
#include "track.h"

namespace livereel {
namespace {

// Each of at most 64 latent frames, which stand for at most 2^20 frames: below 2^62 of them.
constexpr std::int64_t kMaxChunks = std::int64_t{1} << 35;
constexpr std::int64_t kMaxFrames = std::int64_t{1} << 62;
constexpr std::int64_t kMaxState = std::int64_t{1} << 40;  // numbers in the ring

Window window_of(const Recipe& recipe) {
  return {recipe.sinks, recipe.window, recipe.chunk_latents, recipe.anchors, recipe.anchor_every};
}

std::vector<std::string> graphs_of(const Manifest& manifest) {
  std::vector<std::string> names = {"text_kv", "denoise_first", "denoise", "vae_decode_first",
                                    "vae_decode"};
  if (manifest.stream.first_chunk_latents > 1) names.emplace_back("vae_decode_one");
  return names;
}

// A graph's tensors are named so, in this order; behind the last of them come conv caches.
void check_names(const std::string& graph, const std::vector<TensorSpec>& specs,
                 const std::vector<std::string>& names, bool more) {
  bool fit = more ? specs.size() >= names.size() : specs.size() == names.size();
  for (std::size_t i = 0; fit && i < names.size(); ++i) fit = specs[i].name == names[i];
  if (!fit)
    throw Error(Status::kPackage, graph + " has other inputs or outputs than this runtime knows");
}

void check_shape(const std::string& what, const std::vector<std::int64_t>& found,
                 const std::vector<std::int64_t>& wanted) {
  if (found != wanted) throw Error(Status::kPackage, what + " has another shape than it should");
}

}  // namespace

Model::Model(const std::filesystem::path& package, const std::filesystem::path& unpack_to)
    : package_(open_package(package, TORCH_VERSION)), window_(window_of(package_.manifest.stream)) {
  check_graphs();
  graphs_ = load_graphs(package_, graphs_of(manifest()), unpack_to);
}

void Model::check_graphs() const {
  const Recipe& stream = manifest().stream;
  const LatentSpec& latent = manifest().latent;
  const GraphSpec& first = manifest().graph("denoise_first");
  const GraphSpec& denoise = manifest().graph("denoise");
  const GraphSpec& text = manifest().graph("text_kv");
  check_names("text_kv", text.inputs, {"text"}, false);
  check_names("text_kv", text.outputs, {"text_k", "text_v"}, false);
  check_names("denoise_first", first.inputs, {"latent", "timestep", "text_k", "text_v"}, false);
  check_names("denoise_first", first.outputs, {"flow", "k", "v"}, false);
  check_names("denoise", denoise.inputs,
              {"latent", "timestep", "text_k", "text_v", "past_k", "past_v", "positions"}, false);
  check_names("denoise", denoise.outputs, {"flow", "k", "v"}, false);
  const auto check_decoder = [&](const std::string& name, std::int64_t count, std::int64_t frames) {
    const GraphSpec& graph = manifest().graph(name);
    check_names(name, graph.inputs, {"latent"}, true);
    check_names(name, graph.outputs, {"frames"}, true);
    check_shape(name + "'s latent", graph.inputs[0].shape,
                {1, latent.channels, count, latent.height, latent.width});
    check_shape(name + "'s output", graph.outputs[0].shape,
                {1, 3, frames, stream.height, stream.width});
  };
  check_decoder("vae_decode_first", 1, 1);
  check_decoder("vae_decode", stream.chunk_latents, stream.chunk_latents * latent.temporal_factor);
  if (stream.first_chunk_latents > 1) check_decoder("vae_decode_one", 1, latent.temporal_factor);
  const auto latents = [&](std::int64_t frames) {
    const std::int64_t channels = latent.channels + stream.more_channels();
    return std::vector<std::int64_t>{1, channels, frames, latent.height, latent.width};
  };
  if (stream.control_channels != 0 && stream.control_channels != latent.temporal_factor) {
    throw Error(Status::kPackage, "control must have a channel for each frame of a latent frame");
  }
  check_shape("text", text.inputs[0].shape, {1, stream.max_sequence_length, latent.text_width});
  check_shape("denoise_first's latent", first.inputs[0].shape, latents(stream.first_chunk_latents));
  check_shape("denoise's latent", denoise.inputs[0].shape, latents(stream.chunk_latents));
  check_shape("denoise's positions", denoise.inputs[6].shape, {latent.past + stream.chunk_latents});
  const std::vector<std::int64_t>& k = denoise.outputs[1].shape;
  const std::vector<std::int64_t>& past = denoise.inputs[4].shape;
  const std::int64_t seen = stream.sinks + stream.anchors + stream.window - stream.chunk_latents;
  if (k.size() != 5 || past.size() != 5 || seen > latent.past) {
    throw Error(Status::kPackage, "denoise's keys and values do not fit the stream's window");
  }
  const std::int64_t frame = k[0] * k[2] * k[3] * k[4];
  if (frame > kMaxState / window_.slots()) {
    throw Error(Status::kMemory, "the stream's window is larger than any machine's memory");
  }
}

std::optional<std::filesystem::path> Model::negative() const {
  if (manifest().stream.guidance_scale <= 1) return std::nullopt;
  if (!manifest().files.contains(kNegative)) {
    throw Error(Status::kPackage, "the package lacks " + std::string(kNegative) +
                                      ", which guidance needs: export it anew");
  }
  return package_.folder / kNegative;
}

const Graph& Model::graph(std::string_view name) const {
  const auto found = graphs_.find(name);
  if (found == graphs_.end()) {
    throw Error(Status::kPackage, "the graph " + std::string(name) + " is missing");
  }
  return found->second;
}

at::Tensor Model::text(const float* values, std::int64_t tokens, std::int64_t width) const {
  const std::int64_t most = manifest().stream.max_sequence_length;
  const std::int64_t wanted = manifest().latent.text_width;
  if (values == nullptr || tokens < 1 || tokens > most || width != wanted) {
    throw Error(Status::kArgument, "the prompt's embedding is of shape (" + std::to_string(tokens) +
                                       ", " + std::to_string(width) +
                                       "); this package takes 1 to " + std::to_string(most) +
                                       " tokens of " + std::to_string(wanted) + " numbers");
  }
  at::Tensor text = at::zeros({1, most, width}, at::kFloat);
  std::memcpy(text.data_ptr(), values, static_cast<std::size_t>(tokens * width) * sizeof(float));
  return text;
}

TextKV Model::text_kv(const at::Tensor& text) const {
  const std::vector<at::Tensor> made = graph("text_kv")({text});
  return {made[0], made[1]};
}

State Model::begin(std::uint64_t seed, std::int64_t steps) const {
  const auto all = static_cast<std::int64_t>(manifest().stream.timesteps.size());
  State state;
  state.seed = seed;
  state.steps = steps == 0 ? all : steps;
  static_cast<void>(Solver(manifest().stream, state.steps));
  state.ring_k = at::zeros(ring_shape(), at::kFloat);
  state.ring_v = at::zeros(ring_shape(), at::kFloat);
  return state;
}

std::vector<std::int64_t> Model::ring_shape() const {
  std::vector<std::int64_t> shape = manifest().graph("denoise").outputs[1].shape;
  shape[1] = window_.slots();
  return shape;
}

void Model::check(const State& state) const {
  const auto wants = [](const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
    if (!tensor.defined() || tensor.scalar_type() != at::kFloat || tensor.sizes() != shape) {
      throw Error(Status::kPackage, std::string("the snapshot's ") + name +
                                        " is missing or of another shape than this package's");
    }
  };
  const LatentSpec& latent = manifest().latent;
  if (state.steps < 1 || state.steps > std::ssize(manifest().stream.timesteps)) {
    throw Error(Status::kPackage, "the snapshot has another number of steps than this package's");
  }
  wants("text", state.text, {1, manifest().stream.max_sequence_length, latent.text_width});
  wants("ring.k", state.ring_k, ring_shape());
  wants("ring.v", state.ring_v, ring_shape());
  if (state.chunk < 0 || state.chunk > kMaxChunks) {
    throw Error(Status::kPackage, "the snapshot counts more chunks than a stream can have");
  }
  std::int64_t latents = 0;
  if (state.chunk == 0 && (state.pending.defined() || !state.caches.empty())) {
    throw Error(Status::kPackage, "the snapshot holds more than a stream's start does");
  }
  if (state.chunk > 0) {
    const std::int64_t last = chunk_size(state.chunk - 1);
    const std::int64_t channels = latent.channels + manifest().stream.more_channels();
    wants("pending", state.pending, {1, channels, last, latent.height, latent.width});
    if (state.chunk > 1) latents = chunk_size(0) + ((state.chunk - 2) * chunk_size(1));
    const std::vector<TensorSpec>& inputs = manifest().graph("vae_decode").inputs;
    if (state.caches.size() + 1 != inputs.size()) {
      throw Error(Status::kPackage, "the snapshot holds another number of caches");
    }
    for (std::size_t i = 1; i < inputs.size(); ++i) {
      wants("cache", state.caches[i - 1], inputs[i].shape);
    }
  }
  const std::int64_t all = latents + (state.chunk > 0 ? chunk_size(state.chunk - 1) : 0);
  const std::int64_t frames = all == 0 ? 0 : 1 + ((all - 1) * latent.temporal_factor);
  if (state.latent != latents || state.pts != frames) {
    throw Error(Status::kPackage, "the snapshot's numbers of frames do not fit one another");
  }
  if (state.track.defined()) check_track(state);
}

void Model::check_track(const State& state) const {
  const at::Tensor& track = state.track;
  const bool shaped = manifest().stream.control_channels > 0 &&
                      track.scalar_type() == at::kDouble && track.dim() == 2 &&
                      track.size(0) >= 2 && track.size(0) <= kMaxTrack + 1 && track.size(1) == 2;
  const auto inside = [&] {
    return (track.isnan() | ((track >= 0) & (track <= 1))).all().item<bool>();
  };
  if (!shaped || !inside() || state.track_at < 1 || state.track_at > kMaxFrames) {
    throw Error(Status::kPackage, "the snapshot's track cannot be followed");
  }
}

std::int64_t Model::chunk_size(std::int64_t chunk) const {
  const Recipe& stream = manifest().stream;
  return chunk == 0 ? stream.first_chunk_latents : stream.chunk_latents;
}

Model::Pass Model::at(const State& state, std::int64_t first, std::int64_t count,
                      const TextKV& text) const {
  const std::vector<std::int64_t> seen = window_.visible(first);
  std::vector<at::Tensor> given = {text.k, text.v};
  const bool alone = seen.empty() && count == manifest().stream.first_chunk_latents;
  if (!alone) {
    const auto past = static_cast<std::size_t>(manifest().latent.past);
    std::vector<std::int64_t> slots(past, 0), positions(past, -1);
    for (std::size_t i = 0; i < seen.size(); ++i) {
      slots[i] = window_.slot(seen[i]);
      positions[i] = static_cast<std::int64_t>(i);
    }
    for (std::int64_t i = 0; i < count; ++i) positions.push_back(std::ssize(seen) + i);
    const at::Tensor index = at::tensor(slots);
    given.push_back(at::index_select(state.ring_k, 1, index));
    given.push_back(at::index_select(state.ring_v, 1, index));
    given.push_back(at::tensor(positions));
  }
  return [this, alone, given](const at::Tensor& latents, double timestep) {
    std::vector<at::Tensor> inputs = {latents, at::full({1}, timestep, at::kFloat)};
    inputs.insert(inputs.end(), given.begin(), given.end());
    return graph(alone ? "denoise_first" : "denoise")(std::move(inputs));
  };
}

void Model::remember(State& state, const TextKV& text) const {
  if (!state.pending.defined()) return;
  const std::int64_t count = state.pending.size(2);
  const Pass pass = at(state, state.latent, count, text);
  const std::vector<at::Tensor> made = pass(state.pending, manifest().stream.context_noise);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t slot = window_.slot(state.latent + i);
    state.ring_k.select(1, slot).copy_(made[1].select(1, i));
    state.ring_v.select(1, slot).copy_(made[2].select(1, i));
  }
  state.latent += count;
  state.pending = at::Tensor();
}

at::Tensor Model::noise(const State& state, std::uint32_t step, std::int64_t count) const {
  const LatentSpec& latent = manifest().latent;
  at::Tensor noise =
      at::empty({1, latent.channels, count, latent.height, latent.width}, at::kFloat);
  fill_normal(state.seed, static_cast<std::uint64_t>(state.chunk), step,
              noise.mutable_data_ptr<float>(), static_cast<std::size_t>(noise.numel()));
  return noise;
}

void Model::lead(State& state, const at::Tensor& track) const {
  const Recipe& stream = manifest().stream;
  if (stream.control_channels == 0) {
    throw Error(Status::kArgument, "this model follows no control");
  }
  const bool led = state.track.defined();
  const at::Tensor held =
      led ? state.track[std::min(state.track_at, state.track.size(0)) - 1]
          : at::full({2}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  at::Tensor way = track;
  if (track.size(0) == 1) {
    const std::int64_t frames =
        frames_of(chunk_size(state.chunk), stream.control_channels, state.chunk == 0);
    way = glide(held, track[0], frames, stream.control_wraps);
  }
  state.track = way.size(0) > 0 ? at::cat({held.unsqueeze(0), way}) : at::Tensor();
  state.track_at = 1;
}

at::Tensor Model::control(const State& state, std::int64_t count) const {
  const Recipe& stream = manifest().stream;
  const LatentSpec& latent = manifest().latent;
  if (!state.track.defined()) {
    return at::zeros({1, stream.control_channels, count, latent.height, latent.width}, at::kFloat);
  }
  const std::int64_t from = std::min(state.track_at, state.track.size(0) - 1);
  return draw_maps(state.track.narrow(0, from, state.track.size(0) - from),
                   {.latents = count,
                    .factor = stream.control_channels,
                    .height = latent.height,
                    .width = latent.width,
                    .first = state.chunk == 0,
                    .wraps = stream.control_wraps});
}

at::Tensor Model::more(const State& state, std::int64_t count) const {
  const LatentSpec& latent = manifest().latent;
  const at::Tensor goal = at::zeros(
      {1, manifest().stream.goal_channels, count, latent.height, latent.width}, at::kFloat);
  if (manifest().stream.control_channels == 0) return goal;
  return at::cat({control(state, count), goal}, 1);
}

at::Tensor Model::sample(State& state, const TextKV& text,
                         const std::optional<TextKV>& negative) const {
  if (state.chunk >= kMaxChunks) throw Error(Status::kInternal, "the stream has come to its end");
  const std::int64_t count = chunk_size(state.chunk);
  const Solver solver(manifest().stream, state.steps);
  const Pass pass = at(state, state.latent, count, text);
  const Pass away = negative ? at(state, state.latent, count, *negative) : Pass();
  const bool alone = manifest().stream.more_channels() == 0;
  const at::Tensor told = alone ? at::Tensor() : more(state, count);
  const auto with_more = [&](const at::Tensor& latents) {
    return alone ? latents : at::cat({latents, told}, 1);
  };
  at::Tensor x = noise(state, 0, count);
  for (std::size_t i = 0; i < solver.steps(); ++i) {
    const at::Tensor given = with_more(x);
    at::Tensor flow = pass(given, solver.timestep(i))[0];
    if (away) {
      const at::Tensor other = away(given, solver.timestep(i))[0];
      flow = other + (flow - other).mul(manifest().stream.guidance_scale);
    }
    at::Tensor fresh;
    if (solver.takes_noise(i)) fresh = noise(state, static_cast<std::uint32_t>(i) + 1, count);
    x = solver.step(flow, x, i, fresh);
  }
  const std::int64_t channels = manifest().stream.control_channels;
  if (channels > 0) state.track_at += frames_of(count, channels, state.chunk == 0);
  state.pending = with_more(x);
  ++state.chunk;
  return x;
}

at::Tensor Model::decode(State& state, const at::Tensor& latents) const {
  std::vector<at::Tensor> parts;
  std::int64_t at = 0;
  const auto call = [&](std::string_view name, std::int64_t count) {
    std::vector<at::Tensor> inputs = {latents.narrow(2, at, count)};
    inputs.insert(inputs.end(), state.caches.begin(), state.caches.end());
    std::vector<at::Tensor> made = graph(name)(std::move(inputs));
    parts.push_back(made[0]);
    state.caches.assign(made.begin() + 1, made.end());
    at += count;
  };
  const std::int64_t all = latents.size(2), chunk = manifest().stream.chunk_latents;
  if (state.caches.empty()) call("vae_decode_first", 1);
  while (all - at >= chunk) call("vae_decode", chunk);
  while (all - at >= 1) call("vae_decode_one", 1);
  const at::Tensor frames = parts.size() > 1 ? at::cat(parts, 2) : parts[0];
  const at::Tensor bytes = frames.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(at::kByte);
  at::Tensor pixels = bytes.permute({0, 2, 3, 4, 1}).contiguous()[0];
  state.pts += pixels.size(0);
  return pixels;
}

}  // namespace livereel

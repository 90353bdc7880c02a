#include "model.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "livereel/error.h"
#include "philox.h"
#include "solver.h"
#include "track.h"

namespace livereel {
namespace {

// Each of at most 64 latent frames, which stand for at most 2^20 frames: below 2^62 of them.
constexpr std::int64_t kMaxChunks = std::int64_t{1} << 35;
constexpr std::int64_t kMaxFrames = std::int64_t{1} << 62;

// Where a package runs: what its machine code is for was checked as it was opened.
at::Device device_of(const Manifest& manifest) {
  if (!manifest.for_gpu()) return at::kCPU;
  if (!at::hasCUDA()) {
    throw Error(Status::kVersion, "the package was compiled for a GPU (" + manifest.chips[0] +
                                      "); the libtorch of this process runs none");
  }
  return {at::kCUDA, 0};
}

}  // namespace

Model::Model(const std::filesystem::path& package, const std::filesystem::path& unpack_to)
    : package_(open_package(package, TORCH_VERSION)),
      device_(device_of(package_.manifest)),
      dtype_(type_of(package_.manifest.dtype)),
      denoiser_(package_, unpack_to, device_),
      decoder_(package_, unpack_to, device_) {
  const std::int64_t control = manifest().stream.control_channels;
  if (control != 0 && control != manifest().latent.temporal_factor) {
    throw Error(Status::kPackage, "control must have a channel for each frame of a latent frame");
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

at::Tensor Model::text(const float* values, std::int64_t tokens, std::int64_t width) const {
  const std::int64_t most = manifest().stream.max_sequence_length;
  const std::int64_t wanted = manifest().latent.text_width;
  if (values == nullptr || tokens < 1 || tokens > most || width != wanted) {
    throw Error(Status::kArgument, "the prompt's embedding is of shape (" + std::to_string(tokens) +
                                       ", " + std::to_string(width) +
                                       "); this package takes 1 to " + std::to_string(most) +
                                       " tokens of " + std::to_string(wanted) + " numbers");
  }
  const at::Tensor text = at::zeros({1, most, width}, at::kFloat);
  std::memcpy(text.data_ptr(), values, static_cast<std::size_t>(tokens * width) * sizeof(float));
  return text.to(device_, dtype_);
}

State Model::begin(std::uint64_t seed, std::int64_t steps) const {
  const auto all = static_cast<std::int64_t>(manifest().stream.timesteps.size());
  State state;
  state.seed = seed;
  state.steps = steps == 0 ? all : steps;
  static_cast<void>(Solver(manifest().stream, state.steps));
  const auto like = at::TensorOptions(dtype_).device(device_);
  for (std::size_t i = 0; i < denoiser_.ring_size(); ++i) {
    state.ring.push_back(at::zeros(denoiser_.ring_shape(), like));
  }
  return state;
}

State Model::restore(std::span<const std::byte> snapshot) const {
  State state = load_state(snapshot, manifest().fingerprint);
  check(state);
  state.text = state.text.to(device_);
  if (state.pending.defined()) state.pending = state.pending.to(device_);
  for (at::Tensor& part : state.ring) part = part.to(device_);
  for (at::Tensor& cache : state.caches) cache = cache.to(device_);
  return state;
}

void Model::check(const State& state) const {
  const auto wants = [](const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                        at::ScalarType type) {
    if (!tensor.defined() || tensor.scalar_type() != type || tensor.sizes() != shape) {
      throw Error(Status::kPackage, std::string("the snapshot's ") + name +
                                        " is missing or of another shape than this package's");
    }
  };
  const LatentSpec& latent = manifest().latent;
  if (state.steps < 1 || state.steps > std::ssize(manifest().stream.timesteps)) {
    throw Error(Status::kPackage, "the snapshot has another number of steps than this package's");
  }
  wants("text", state.text, {1, manifest().stream.max_sequence_length, latent.text_width}, dtype_);
  if (state.ring.size() != denoiser_.ring_size()) {
    throw Error(Status::kPackage, "the snapshot's past is not such as this package's");
  }
  for (const at::Tensor& part : state.ring) wants("past", part, denoiser_.ring_shape(), dtype_);
  if (state.chunk < 0 || state.chunk > kMaxChunks) {
    throw Error(Status::kPackage, "the snapshot counts more chunks than a stream can have");
  }
  std::int64_t latents = 0;
  if (state.chunk == 0 && (state.pending.defined() || !state.caches.empty())) {
    throw Error(Status::kPackage, "the snapshot holds more than a stream's start does");
  }
  if (state.chunk > 0) {
    const std::int64_t last = chunk_size(state.chunk - 1);
    const std::int64_t channels = latent.channels + manifest().stream.told_channels();
    wants("pending", state.pending, {1, channels, last, latent.height, latent.width}, at::kFloat);
    if (state.chunk > 1) latents = chunk_size(0) + ((state.chunk - 2) * chunk_size(1));
    const std::span<const TensorSpec> caches = decoder_.caches();
    if (state.caches.size() != caches.size()) {
      throw Error(Status::kPackage, "the snapshot holds another number of caches");
    }
    for (std::size_t i = 0; i < caches.size(); ++i) {
      wants("cache", state.caches[i], caches[i].shape, type_of(caches[i].dtype));
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

void Model::remember(State& state, const Prompt& prompt) const {
  if (!state.pending.defined()) return;
  denoiser_.remember(state.ring, state.latent, rounded(state.pending), prompt);
  state.latent += state.pending.size(2);
  state.pending = at::Tensor();
}

at::Tensor Model::rounded(const at::Tensor& latents) const {
  return latents.to(dtype_).to(at::kFloat);
}

at::Tensor Model::noise(const State& state, std::uint32_t step, std::int64_t count) const {
  const LatentSpec& latent = manifest().latent;
  const at::Tensor noise =
      at::empty({1, latent.channels, count, latent.height, latent.width}, at::kFloat);
  fill_normal(state.seed, static_cast<std::uint64_t>(state.chunk), step,
              noise.mutable_data_ptr<float>(), static_cast<std::size_t>(noise.numel()));
  return noise.to(device_);
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

at::Tensor Model::told(const State& state, std::int64_t count) const {
  const LatentSpec& latent = manifest().latent;
  const at::Tensor goal = at::zeros(
      {1, manifest().stream.goal_channels, count, latent.height, latent.width}, at::kFloat);
  if (manifest().stream.control_channels == 0) return goal.to(device_);
  return at::cat({control(state, count), goal}, 1).to(device_);
}

at::Tensor Model::sample(State& state, const Prompt& prompt,
                         const std::optional<Prompt>& negative) const {
  if (state.chunk >= kMaxChunks) throw Error(Status::kInternal, "the stream has come to its end");
  const std::int64_t count = chunk_size(state.chunk);
  const Solver solver(manifest().stream, state.steps);
  const auto passes = [&](const Prompt& given) {
    return denoiser_.at(state.ring, state.latent, count, given);
  };
  const Denoiser::Pass pass = passes(prompt);
  const Denoiser::Pass away = negative ? passes(*negative) : Denoiser::Pass();
  const bool alone = manifest().stream.told_channels() == 0;
  const at::Tensor behind = alone ? at::Tensor() : told(state, count);
  const auto with_told = [&](const at::Tensor& latents) {
    return alone ? latents : at::cat({latents, behind}, 1);
  };
  at::Tensor x = noise(state, 0, count), solving;
  for (std::size_t i = 0; i < solver.steps(); ++i) {
    const at::Tensor given = rounded(with_told(x));
    at::Tensor flow = pass(given, solver.timestep(i))[0];
    if (away) {
      const at::Tensor other = away(given, solver.timestep(i))[0];
      flow = other + (flow - other).mul(manifest().stream.guidance_scale);
    }
    at::Tensor fresh;
    if (solver.takes_noise(i)) fresh = noise(state, static_cast<std::uint32_t>(i) + 1, count);
    x = solver.step(flow, x, i, solving, fresh);
  }
  const std::int64_t channels = manifest().stream.control_channels;
  if (channels > 0) state.track_at += frames_of(count, channels, state.chunk == 0);
  state.pending = with_told(x);
  ++state.chunk;
  return x;
}

at::Tensor Model::decode(State& state, const at::Tensor& latents) const {
  const at::Tensor frames = decoder_.decode(state.caches, latents);
  const at::Tensor bytes = frames.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(at::kByte);
  at::Tensor pixels = bytes.permute({0, 2, 3, 4, 1}).contiguous()[0];
  state.pts += pixels.size(0);
  if (device_.is_cpu()) return pixels;
  at::Tensor host = at::empty(pixels.sizes(), at::TensorOptions(at::kByte).pinned_memory(true));
  host.copy_(pixels);  // and waits for it
  return host;
}

}  // namespace livereel

// What a package's manifest.json says. `livereel.engine.package` writes and documents it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace livereel {

struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
};

struct GraphSpec {
  std::string file;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::map<std::string, std::string, std::less<>> state;  // output to the next call's input
};

struct FileSpec {
  std::int64_t bytes;
  std::string sha256;
};

// The fields of `StreamConfig` that a stream needs.
struct Recipe {
  std::int64_t chunk_latents;
  std::int64_t first_chunk_latents;
  std::int64_t window;
  std::int64_t sinks;
  std::int64_t anchors;
  std::int64_t anchor_every;
  std::vector<double> timesteps;
  double context_noise;
  std::string solver;  // "euler", "renoise", "ddim" or "dpm"
  double shift;        // of the signal-to-noise ratio, for the last two
  double fps;
  double guidance_scale;  // above 1: flow is guided away from the empty prompt's
  std::int64_t max_sequence_length;
  std::int64_t width;
  std::int64_t height;
  std::int64_t control_channels;  // maps of where the object shall be, behind the latents' channels
  bool control_wraps;
  std::int64_t goal_channels;  // behind those, of a picture that the stream ends with: zeros here

  // What the DiT is given of each latent frame behind the latents' own channels.
  [[nodiscard]] std::int64_t told_channels() const { return control_channels + goal_channels; }
};

// The fields of `Latent` that a stream needs.
struct LatentSpec {
  std::int64_t channels;
  std::int64_t height;
  std::int64_t width;
  std::int64_t temporal_factor;
  std::int64_t past;
  std::int64_t text_width;
  std::vector<double> mean;
  std::vector<double> std;
  std::int64_t temporal_patch;  // chunk and past together are a multiple of it
  std::int64_t vae_chunk;       // latent frames of a decoder's call, where that matters; or 0
};

struct Manifest {
  std::vector<std::string> chips;
  std::string dtype;  // of weights, text and past: "float32", "float16" or "bfloat16"
  std::string name;
  std::string fingerprint;
  std::map<std::string, std::string, std::less<>> versions;
  Recipe stream;
  LatentSpec latent;
  std::map<std::string, GraphSpec, std::less<>> graphs;
  std::map<std::string, FileSpec, std::less<>> files;

  // Whether the graphs are compiled for NVIDIA's GPUs ("sm_90").
  [[nodiscard]] bool for_gpu() const;

  // Throws Error(kPackage) for a graph that is not there.
  [[nodiscard]] const GraphSpec& graph(std::string_view name) const;
};

inline constexpr std::size_t kMaxManifest = std::size_t{4} << 20;

// Reads a manifest's text. Throws Error(kVersion) for another layout, format, rule of noise, or
// for a recipe that this runtime does not run, and Error(kPackage) for a value that is missing, of
// the wrong type or out of bounds.
Manifest read_manifest(std::string_view text);

}  // namespace livereel

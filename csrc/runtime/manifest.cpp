#include "manifest.h"

#include <algorithm>
#include <array>
#include <limits>

#include "json.h"
#include "livereel/error.h"

namespace livereel {
namespace {

constexpr std::int64_t kLayout = 1;
constexpr std::string_view kSeedRule = "philox4x32-10 normal(seed, chunk, step)";
constexpr std::size_t kMost = 10'000;
constexpr std::int64_t kMaxNumbers = std::int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& why) { throw Error(Status::kPackage, why); }

const Json::Object& members(const Json& json, std::string_view key) {
  const Json::Object& found = json.at(key).object(key);
  if (found.size() > kMost) refuse(std::string(key) + " has too many values");
  return found;
}

const Json::Array& items(const Json& json, std::string_view key) {
  const Json::Array& found = json.at(key).array(key);
  if (found.size() > kMost) refuse(std::string(key) + " has too many values");
  return found;
}

std::vector<double> numbers(const Json& json, std::string_view key) {
  std::vector<double> out;
  for (const Json& item : items(json, key)) out.push_back(item.number(key));
  return out;
}

// One to four names with slashes between them, none of which leads out of the folder.
std::string checked_path(const std::string& path) {
  constexpr std::string_view kLetters =
      ".abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
  constexpr std::ptrdiff_t kMostNames = 4;
  constexpr std::size_t kMostLetters = 100;  // of a name
  bool fits = std::ranges::count(path, '/') < kMostNames;
  for (std::size_t at = 0; fits && at <= path.size();) {
    const std::string_view rest = std::string_view(path).substr(at);
    const std::string_view name = rest.substr(0, rest.find('/'));
    fits = !name.empty() && name.size() <= kMostLetters && name[0] != '.' &&
           name.find_first_not_of(kLetters) == std::string_view::npos;
    at += name.size() + 1;
  }
  if (!fits) refuse("a file's name cannot be " + path.substr(0, 80));
  return path;
}

TensorSpec read_tensor(const Json& json) {
  TensorSpec tensor{json.at("name").text("name"), json.at("dtype").text("dtype"), {}};
  std::int64_t count = 1;
  for (const Json& side : items(json, "shape")) {
    tensor.shape.push_back(side.whole("shape", 0, kMaxNumbers));
    if (tensor.shape.back() != 0 && count > kMaxNumbers / tensor.shape.back()) {
      refuse(tensor.name + " is larger than any model's tensor");
    }
    count *= std::max<std::int64_t>(1, tensor.shape.back());
  }
  return tensor;
}

GraphSpec read_graph(const Json& json) {
  GraphSpec graph{checked_path(json.at("file").text("file")), {}, {}, {}};
  for (const Json& input : items(json, "inputs")) graph.inputs.push_back(read_tensor(input));
  for (const Json& output : items(json, "outputs")) graph.outputs.push_back(read_tensor(output));
  for (const auto& [output, input] : members(json, "state")) {
    graph.state.emplace(output, input.text(output));
  }
  return graph;
}

Recipe read_recipe(const Json& json) {
  const auto whole = [&](const char* key, std::int64_t low, std::int64_t high) {
    return json.at(key).whole(key, low, high);
  };
  Recipe recipe{
      .chunk_latents = whole("chunk_latents", 1, 64),
      .first_chunk_latents = whole("first_chunk_latents", 1, 64),
      .window = whole("window", 1, 4096),
      .sinks = whole("sinks", 0, 256),
      .anchors = whole("anchors", 0, 256),
      .anchor_every = whole("anchor_every", 1, 4096),
      .timesteps = numbers(json, "timesteps"),
      .context_noise = json.at("context_noise").number("context_noise"),
      .solver = json.at("solver").text("solver"),
      .shift = json.at("shift").number("shift"),
      .fps = json.at("fps").number("fps"),
      .guidance_scale = json.at("guidance_scale").number("guidance_scale"),
      .max_sequence_length = whole("max_sequence_length", 1, 4096),
      .width = whole("width", 8, 8192),
      .height = whole("height", 8, 8192),
      .control_channels = 0,
      .control_wraps = false,
      .goal_channels = 0,
  };
  if (json.find("control_channels") != nullptr) {
    recipe.control_channels = whole("control_channels", 0, 64);
    recipe.control_wraps = json.at("control_wraps").truth("control_wraps");
  }
  if (json.find("goal_channels") != nullptr) recipe.goal_channels = whole("goal_channels", 0, 128);
  if (recipe.first_chunk_latents > recipe.chunk_latents || recipe.window < recipe.chunk_latents) {
    refuse("the stream's chunks do not fit its window");
  }
  double before = std::numeric_limits<double>::infinity();
  for (const double t : recipe.timesteps) {
    if (!(t > 0 && t <= 1000 && t < before))
      refuse("timesteps must fall from at most 1000 to above 0");
    before = t;
  }
  if (recipe.timesteps.empty() || recipe.timesteps.size() > 1000)
    refuse("timesteps must be 1 to 1000");
  if (!(recipe.context_noise >= 0 && recipe.context_noise <= 1000)) {
    refuse("context_noise must be from 0 to 1000");
  }
  if (!(recipe.fps >= 0.1 && recipe.fps <= 240)) refuse("fps must be from 0.1 to 240");
  if (!(recipe.shift >= 0.01 && recipe.shift <= 100)) refuse("shift must be from 0.01 to 100");
  constexpr std::array<std::string_view, 4> kSolvers = {"euler", "renoise", "ddim", "dpm"};
  if (std::ranges::find(kSolvers, recipe.solver) == kSolvers.end()) {
    throw Error(Status::kVersion, "the solver " + recipe.solver.substr(0, 40) + " is unknown");
  }
  if (!(recipe.guidance_scale >= 0 && recipe.guidance_scale <= 100)) {
    refuse("guidance_scale must be from 0 to 100");
  }
  return recipe;
}

LatentSpec read_latent(const Json& json) {
  const auto whole = [&](const char* key, std::int64_t low) {
    return json.at(key).whole(key, low, std::int64_t{1} << 20);
  };
  const auto rare = [&](const char* key, std::int64_t otherwise) {
    return json.find(key) == nullptr ? otherwise : whole(key, 1);
  };
  LatentSpec latent{
      .channels = whole("channels", 1),
      .height = whole("height", 1),
      .width = whole("width", 1),
      .temporal_factor = whole("temporal_factor", 1),
      .past = whole("past", 0),
      .text_width = whole("text_width", 1),
      .mean = numbers(json, "mean"),
      .std = numbers(json, "std"),
      .temporal_patch = rare("temporal_patch", 1),
      .vae_chunk = rare("vae_chunk", 0),
  };
  const auto channels = static_cast<std::size_t>(latent.channels);
  if (latent.mean.size() != channels || latent.std.size() != channels) {
    refuse("mean and std must be one number for each channel");
  }
  return latent;
}

}  // namespace

bool Manifest::for_gpu() const {
  const auto is_gpu = [](const std::string& chip) { return chip.starts_with("sm_"); };
  return !chips.empty() && std::ranges::all_of(chips, is_gpu);
}

const GraphSpec& Manifest::graph(std::string_view graph_name) const {
  const auto found = graphs.find(graph_name);
  if (found == graphs.end()) refuse("the graph " + std::string(graph_name) + " is missing");
  return found->second;
}

Manifest read_manifest(std::string_view text) {
  const Json json = Json::parse(text);
  const auto told = json.at("manifest").whole("manifest", 0, std::numeric_limits<int>::max());
  if (told != kLayout) {
    throw Error(Status::kVersion, "the manifest is of version " + std::to_string(told) +
                                      "; this runtime reads " + std::to_string(kLayout));
  }
  if (const std::string& format = json.at("format").text("format"); format != "aoti") {
    throw Error(Status::kVersion,
                "the package's format is " + format.substr(0, 40) + "; this runtime runs aoti");
  }
  if (json.at("seed").text("seed") != kSeedRule) {
    throw Error(Status::kVersion, "the package draws its noise by another rule");
  }
  const std::string& dtype = json.at("dtype").text("dtype");
  if (dtype != "float32" && dtype != "float16" && dtype != "bfloat16") {
    throw Error(Status::kVersion, "the package's dtype " + dtype.substr(0, 40) + " is unknown");
  }
  const Json& model = json.at("model");
  Manifest manifest{
      .chips = {},
      .dtype = dtype,
      .name = model.at("name").text("name"),
      .fingerprint = model.at("fingerprint").text("fingerprint"),
      .versions = {},
      .stream = read_recipe(json.at("stream")),
      .latent = read_latent(json.at("latent")),
      .graphs = {},
      .files = {},
  };
  for (const Json& chip : items(json, "chips")) manifest.chips.push_back(chip.text("a chip"));
  for (const auto& [name, version] : members(json, "versions")) {
    manifest.versions.emplace(name, version.text(name));
  }
  for (const auto& [name, info] : members(json, "files")) {
    FileSpec file{info.at("bytes").whole("bytes", 0, std::int64_t{1} << 50),
                  info.at("sha256").text("sha256")};
    manifest.files.emplace(checked_path(name), std::move(file));
  }
  for (const auto& [name, graph] : members(json, "graphs")) {
    GraphSpec spec = read_graph(graph);
    if (!manifest.files.contains(spec.file)) refuse("files lacks " + spec.file + " of a graph");
    manifest.graphs.emplace(name, std::move(spec));
  }
  return manifest;
}

}  // namespace livereel

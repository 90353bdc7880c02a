// A loaded package: from a state to its next chunk, step by step as the Python runner goes.
//
// Shapes: C latent channels, T latent frames, H W latent space, F frames, L text tokens, D text
// width, S latent frames of the past, n tokens a latent frame, h heads, d head width.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graph.h"
#include "package.h"
#include "state.h"
#include "window.h"

namespace livereel {

// A prompt's keys and values, [layers, L, h, d] each.
struct TextKV {
  at::Tensor k;
  at::Tensor v;
};

class Model {
 public:
  // Throws Error for a package that cannot be opened or loaded, or whose graphs do not fit one
  // another.
  Model(const std::filesystem::path& package, const std::filesystem::path& unpack_to);

  [[nodiscard]] const Manifest& manifest() const noexcept { return package_.manifest; }

  // The file with the embedding of the prompt that flow is guided away from, if it is. Throws
  // Error(kPackage) where the package lacks it.
  [[nodiscard]] std::optional<std::filesystem::path> negative() const;

  // A prompt's embedding [tokens, width] as graphs take it, [1, L, D], zeros behind it. Throws
  // Error(kArgument) for more tokens than L, none, or another width.
  [[nodiscard]] at::Tensor text(const float* values, std::int64_t tokens, std::int64_t width) const;
  [[nodiscard]] TextKV text_kv(const at::Tensor& text) const;

  // A state before the first chunk.
  [[nodiscard]] State begin(std::uint64_t seed, std::int64_t steps) const;

  // Throws Error(kPackage) for a state that no stream of this model can have come to.
  void check(const State& state) const;

  // Runs the cache pass that the chunk before left open, under the prompt it was made with.
  void remember(State& state, const TextKV& text) const;

  // Has the next chunk and those after it follow a track [F, 2]: none where that is empty, and a
  // way within one chunk to a single position. Throws Error(kArgument) for a model that follows
  // none.
  void lead(State& state, const at::Tensor& track) const;

  // Makes the next chunk's clean latents [1, C, T, H, W] and takes them into the state; with
  // `negative`, flow is guided away from it (Ho and Salimans 2022).
  [[nodiscard]] at::Tensor sample(State& state, const TextKV& text,
                                  const std::optional<TextKV>& negative) const;

  // Decodes latents to bytes [F, height, width, 3].
  [[nodiscard]] at::Tensor decode(State& state, const at::Tensor& latents) const;

 private:
  using Pass = std::function<std::vector<at::Tensor>(const at::Tensor& latents, double timestep)>;

  [[nodiscard]] const Graph& graph(std::string_view name) const;
  [[nodiscard]] Pass at(const State& state, std::int64_t first, std::int64_t count,
                        const TextKV& text) const;
  [[nodiscard]] at::Tensor noise(const State& state, std::uint32_t step, std::int64_t count) const;
  [[nodiscard]] std::int64_t chunk_size(std::int64_t chunk) const;
  // The maps [1, Cc, T, H, W] of the state's next chunk.
  [[nodiscard]] at::Tensor control(const State& state, std::int64_t count) const;
  // What goes behind the latents' channels of the state's next chunk: control, then the goal's
  // zeros.
  [[nodiscard]] at::Tensor more(const State& state, std::int64_t count) const;
  [[nodiscard]] std::vector<std::int64_t> ring_shape() const;
  void check_track(const State& state) const;
  void check_graphs() const;

  Package package_;
  Window window_;
  std::map<std::string, Graph, std::less<>> graphs_;
};

}  // namespace livereel

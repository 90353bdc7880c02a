// A loaded package: from a state to its next chunk, step by step as the Python runner goes.
//
// A package compiled for a GPU is run on the first one: weights and state lie there, and only bytes
// of frames come back. That was written without a GPU at hand and has never run on one.
//
// Shapes: C latent channels, T latent frames, H W latent space, F frames, L text tokens, D text
// width.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decoder.h"
#include "denoiser.h"
#include "package.h"
#include "state.h"

namespace livereel {

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
  [[nodiscard]] Prompt prompt(const at::Tensor& text) const { return denoiser_.prompt(text); }

  // A state before the first chunk.
  [[nodiscard]] State begin(std::uint64_t seed, std::int64_t steps) const;

  // That of a snapshot. Throws Error(kPackage) for one that no stream of this model can have come
  // to.
  [[nodiscard]] State restore(std::span<const std::byte> snapshot) const;

  // Puts the chunk before into the ring, under the prompt it was made with.
  void remember(State& state, const Prompt& prompt) const;

  // Has the next chunk and those after it follow a track [F, 2]: none where that is empty, and a
  // way within one chunk to a single position. Throws Error(kArgument) for a model that follows
  // none.
  void lead(State& state, const at::Tensor& track) const;

  // Makes the next chunk's clean latents [1, C, T, H, W] and takes them into the state; with
  // `negative`, flow is guided away from it (Ho and Salimans 2022).
  [[nodiscard]] at::Tensor sample(State& state, const Prompt& prompt,
                                  const std::optional<Prompt>& negative) const;

  // Decodes latents to bytes [F, height, width, 3] on the host.
  [[nodiscard]] at::Tensor decode(State& state, const at::Tensor& latents) const;

 private:
  [[nodiscard]] at::Tensor noise(const State& state, std::uint32_t step, std::int64_t count) const;
  // What passes are given of latents: float32 that the package's dtype could hold.
  [[nodiscard]] at::Tensor rounded(const at::Tensor& latents) const;
  [[nodiscard]] std::int64_t chunk_size(std::int64_t chunk) const;
  // The maps [1, Cc, T, H, W] of the state's next chunk.
  [[nodiscard]] at::Tensor control(const State& state, std::int64_t count) const;
  // What is told behind the latents' channels of the state's next chunk: control, then the goal's
  // zeros.
  [[nodiscard]] at::Tensor told(const State& state, std::int64_t count) const;
  void check(const State& state) const;
  void check_track(const State& state) const;

  Package package_;
  at::Device device_;
  at::ScalarType dtype_;  // of text, past and what passes are given
  Denoiser denoiser_;
  Decoder decoder_;
};

}  // namespace livereel

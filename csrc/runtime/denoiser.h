// A package's DiT as its graphs have it: over the keys and values of the past, or over past latents
// themselves.
//
// Shapes: C channels (those behind the latents' own among them), T latent frames, H W latent space,
// L text tokens, D text width, S latent frames of the past, n tokens a latent frame, h heads, d
// head width.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "graph.h"
#include "package.h"
#include "window.h"

namespace livereel {

// What passes are given of a prompt: its keys and values [layers, L, h, d], or its embedding
// [1, L, D].
using Prompt = std::vector<at::Tensor>;

// The past that passes read: keys and values [layers, slots, n, h, d], or clean latents
// [1, C, slots, H, W];
// in the package's dtype.
using Ring = std::vector<at::Tensor>;

class Denoiser {
 public:
  // From latents [1, C, T, H, W] at a timestep to what a graph gives: flow, perhaps keys and
  // values.
  using Pass = std::function<std::vector<at::Tensor>(const at::Tensor& latents, double timestep)>;

  // Checks graphs against the recipe and loads them. Throws Error.
  Denoiser(const Package& package, const std::filesystem::path& unpack_to, at::Device device);

  // Of an embedding [1, L, D].
  [[nodiscard]] Prompt prompt(const at::Tensor& text) const;

  // How many tensors a ring has, and the shape of each.
  [[nodiscard]] std::size_t ring_size() const { return looks_at_latents_ ? 1 : 2; }
  [[nodiscard]] std::vector<std::int64_t> ring_shape() const;

  // Passes over the `count` latent frames from number `first` on.
  [[nodiscard]] Pass at(const Ring& ring, std::int64_t first, std::int64_t count,
                        const Prompt& prompt) const;

  // Writes clean latents to the ring, or their keys and values under a prompt.
  void remember(const Ring& ring, std::int64_t first, const at::Tensor& latents,
                const Prompt& prompt) const;

 private:
  void check_graphs() const;
  void check_past(const std::vector<std::int64_t>& past) const;
  [[nodiscard]] at::Tensor gathered(const at::Tensor& ring,
                                    const std::vector<std::int64_t>& seen) const;

  Manifest manifest_;
  bool looks_at_latents_;
  std::size_t frames_at_;  // the ring's dimension of latent frames
  Window window_;
  at::Device device_;
  Graphs graphs_;
};

}  // namespace livereel

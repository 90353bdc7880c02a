// A package's VAE decoder as its graphs have it, each for calls of one length.
//
// Shapes: C latent channels, T latent frames, H W latent space, F frames.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "graph.h"
#include "package.h"

namespace livereel {

class Decoder {
 public:
  // Checks graphs against the recipe and loads them. Throws Error.
  Decoder(const Package& package, const std::filesystem::path& unpack_to, at::Device device);

  // The conv caches of a stream that has begun.
  [[nodiscard]] std::span<const TensorSpec> caches() const;

  // Latents [1, C, T, H, W] to frames [1, 3, F, height, width] in [-1, 1]. Caches, none at a
  // stream's start, become those of the next call.
  [[nodiscard]] at::Tensor decode(std::vector<at::Tensor>& caches, const at::Tensor& latents) const;

 private:
  struct Call {
    std::string graph;
    std::int64_t latents;
  };

  // How so many latent frames are decoded, at a stream's `start` or later.
  [[nodiscard]] std::vector<Call> calls(std::int64_t latents, bool start) const;
  void check(const std::vector<Call>& calls, bool start) const;

  Manifest manifest_;
  Graphs graphs_;
};

}  // namespace livereel

// All that a stream's next chunk depends on, and the bytes it travels in.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace livereel {

struct State {
  std::uint64_t seed = 0;
  std::int64_t steps = 0;
  std::int64_t chunk = 0;        // chunks made
  std::int64_t latent = 0;       // latent frames in the ring
  std::int64_t pts = 0;          // frames made
  at::Tensor text;               // [1, L, D]
  std::vector<at::Tensor> ring;  // as the model's Denoiser has it
  at::Tensor pending;  // [1, C, T, H, W], whose keys and values are not in the ring yet; behind its
                       // channels those of its control and goal
  at::Tensor track;    // [1 + F, 2] that control follows: where it led before, then where to
  std::int64_t track_at = 0;  // the track's position of the next frame
  std::vector<at::Tensor> caches;
};

// A safetensors file; `model` is the fingerprint of the weights that the state belongs to.
std::vector<std::byte> save_state(const State& state, const std::string& model);

// The inverse, on the host; throws Error(kPackage) for what is no snapshot of `model`. The tensors'
// shapes and the numbers are the caller's to check: `ring` and `caches` are as many as there are.
State load_state(std::span<const std::byte> bytes, const std::string& model);

}  // namespace livereel

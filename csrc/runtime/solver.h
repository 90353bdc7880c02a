// The solvers of a stream, as `livereel.engine.sampling` has them (solvers, ddim, dpm, velocity),
// to the bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "manifest.h"

namespace livereel {

// `steps` of a recipe's passes, evenly spread and always with the first.
class Solver {
 public:
  // Throws Error(kArgument) unless there are 1 to as many as the recipe has, and Error(kPackage)
  // where noise does not get less in each.
  Solver(const Recipe& recipe, std::int64_t steps);

  [[nodiscard]] std::size_t steps() const noexcept { return timesteps_.size(); }
  [[nodiscard]] double timestep(std::size_t i) const { return timesteps_.at(i); }

  // Whether step i mixes in fresh noise.
  [[nodiscard]] bool takes_noise(std::size_t i) const;

  // From the latent `x` at step i and what the model predicts there, flow or velocity, to the
  // latent at step i + 1. `state` is that of this call and the next one, undefined at first.
  [[nodiscard]] at::Tensor step(const at::Tensor& predicted, const at::Tensor& x, std::size_t i,
                                at::Tensor& state, const at::Tensor& noise) const;

 private:
  enum class Kind : std::uint8_t { kEuler, kRenoise, kDdim, kDpm };

  [[nodiscard]] at::Tensor flow_step(const at::Tensor& flow, const at::Tensor& x, std::size_t i,
                                     const at::Tensor& noise) const;
  [[nodiscard]] at::Tensor ddim_step(const at::Tensor& velocity, const at::Tensor& x,
                                     std::size_t i) const;
  [[nodiscard]] at::Tensor dpm_step(const at::Tensor& velocity, const at::Tensor& x, std::size_t i,
                                    at::Tensor& state, const at::Tensor& noise) const;

  Kind kind_;
  std::vector<double> timesteps_;
  std::vector<double> levels_;  // at each step and behind the last: sigmas, or the signal's shares
};

}  // namespace livereel

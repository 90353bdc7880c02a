// The solvers of a stream, as `livereel.engine.sampling.solvers` has them, to the bit.
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
  // Throws Error(kArgument) unless there are 1 to as many as the recipe has.
  Solver(const Recipe& recipe, std::int64_t steps);

  [[nodiscard]] std::size_t steps() const noexcept { return timesteps_.size(); }
  [[nodiscard]] double timestep(std::size_t i) const { return timesteps_.at(i); }

  // Whether step i mixes in fresh noise.
  [[nodiscard]] bool takes_noise(std::size_t i) const;

  // From the latent `x` at step i and the flow predicted there to the latent at step i + 1.
  [[nodiscard]] at::Tensor step(const at::Tensor& flow, const at::Tensor& x, std::size_t i,
                                const at::Tensor& noise) const;

 private:
  bool renoise_;
  std::vector<double> timesteps_;
  std::vector<double> sigmas_;
};

}  // namespace livereel

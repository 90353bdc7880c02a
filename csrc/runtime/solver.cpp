#include "solver.h"

#include <ATen/TensorOperators.h>

#include "livereel/error.h"

namespace livereel {

Solver::Solver(const Recipe& recipe, std::int64_t steps) : renoise_(recipe.solver == "renoise") {
  const auto count = static_cast<std::int64_t>(recipe.timesteps.size());
  if (steps < 1 || steps > count) {
    throw Error(Status::kArgument, "steps must be from 1 to the " + std::to_string(count) +
                                       " this model knows, got " + std::to_string(steps));
  }
  for (std::int64_t i = 0; i < steps; ++i) {
    const std::int64_t at = ((2 * i * count) + steps) / (2 * steps);
    timesteps_.push_back(recipe.timesteps[static_cast<std::size_t>(at)]);
    sigmas_.push_back(static_cast<float>(timesteps_.back() / 1000));
  }
  sigmas_.push_back(0);
}

bool Solver::takes_noise(std::size_t i) const { return renoise_ && sigmas_.at(i + 1) > 0; }

at::Tensor Solver::step(const at::Tensor& flow, const at::Tensor& x, std::size_t i,
                        const at::Tensor& noise) const {
  const double sigma = sigmas_.at(i), next = sigmas_.at(i + 1);
  if (!renoise_) return x + flow.mul(next - sigma);
  at::Tensor x0 = x - flow.mul(sigma);
  if (!takes_noise(i)) return x0;
  return x0.mul(1.0 - next) + noise.mul(next);
}

}  // namespace livereel

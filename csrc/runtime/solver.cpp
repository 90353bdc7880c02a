#include "solver.h"

#include <ATen/TensorOperators.h>

#include <array>
#include <cmath>
#include <limits>

#include "livereel/error.h"

namespace livereel {
namespace {

constexpr std::size_t kTrained = 1000;  // timesteps

// Python takes roots so, and an exact root may differ in its last bit.
double root(double x) { return std::pow(x, 0.5); }

// Share of the signal at timesteps 0 to 999: betas even in their roots, shifted, scaled so that the
// last is 0 and the first stays.
std::array<double, kTrained> signal(double shift) {
  const double first = root(0.00085), last = root(0.012);
  const double stride = (last - first) / static_cast<double>(kTrained - 1);
  std::array<double, kTrained> table{};
  double share = 1;
  for (std::size_t i = 0; i < kTrained; ++i) {
    const double even = i + 1 < kTrained ? (static_cast<double>(i) * stride) + first : last;
    share *= 1.0 - (even * even);
    table[i] = std::sqrt(share / (shift + ((1.0 - shift) * share)));
  }
  const double end = table.back();
  const double scale = table.front() / (table.front() - end);
  for (double& value : table) {
    value = (value - end) * scale;
    value *= value;
  }
  return table;
}

// Between its entries a table is straight.
double at_time(const std::array<double, kTrained>& table, double timestep) {
  const auto below = static_cast<std::size_t>(timestep);
  if (below >= kTrained - 1) return table.back();
  const double more = timestep - static_cast<double>(below);
  if (more == 0) return table[below];
  return ((table[below + 1] - table[below]) * more) + table[below];
}

// Half the logarithm of the signal-to-noise ratio.
double log_snr(double share) {
  if (share == 0) return -std::numeric_limits<double>::infinity();
  return 0.5 * (std::log(share) - std::log1p(-share));
}

at::Tensor clean_of(const at::Tensor& velocity, const at::Tensor& x, double share) {
  return x.mul(root(share)) - velocity.mul(root(1.0 - share));
}

}  // namespace

Solver::Solver(const Recipe& recipe, std::int64_t steps)
    : kind_(recipe.solver == "euler"     ? Kind::kEuler
            : recipe.solver == "renoise" ? Kind::kRenoise
            : recipe.solver == "ddim"    ? Kind::kDdim
                                         : Kind::kDpm) {
  const auto count = static_cast<std::int64_t>(recipe.timesteps.size());
  if (steps < 1 || steps > count) {
    throw Error(Status::kArgument, "steps must be from 1 to the " + std::to_string(count) +
                                       " this model knows, got " + std::to_string(steps));
  }
  const bool flows = kind_ == Kind::kEuler || kind_ == Kind::kRenoise;
  const auto table = flows ? std::array<double, kTrained>{} : signal(recipe.shift);
  for (std::int64_t i = 0; i < steps; ++i) {
    const std::int64_t at = ((2 * i * count) + steps) / (2 * steps);
    const double time = recipe.timesteps[static_cast<std::size_t>(at)];
    timesteps_.push_back(time);
    levels_.push_back(flows ? static_cast<float>(time / 1000) : at_time(table, time));
  }
  levels_.push_back(flows ? 0 : 1);
  for (std::size_t i = 0; !flows && i < timesteps_.size(); ++i) {
    if (!(levels_[i] < levels_[i + 1])) {
      throw Error(Status::kPackage, "the signal must grow in every step");
    }
  }
}

bool Solver::takes_noise(std::size_t i) const {
  return (kind_ == Kind::kRenoise && levels_.at(i + 1) > 0) ||
         (kind_ == Kind::kDpm && levels_.at(i + 1) < 1);
}

at::Tensor Solver::step(const at::Tensor& predicted, const at::Tensor& x, std::size_t i,
                        at::Tensor& state, const at::Tensor& noise) const {
  if (kind_ == Kind::kDdim) return ddim_step(predicted, x, i);
  if (kind_ == Kind::kDpm) return dpm_step(predicted, x, i, state, noise);
  return flow_step(predicted, x, i, noise);
}

at::Tensor Solver::flow_step(const at::Tensor& flow, const at::Tensor& x, std::size_t i,
                             const at::Tensor& noise) const {
  const double sigma = levels_.at(i), next = levels_.at(i + 1);
  if (kind_ == Kind::kEuler) return x + flow.mul(next - sigma);
  at::Tensor x0 = x - flow.mul(sigma);
  if (!takes_noise(i)) return x0;
  return x0.mul(1.0 - next) + noise.mul(next);
}

at::Tensor Solver::ddim_step(const at::Tensor& velocity, const at::Tensor& x, std::size_t i) const {
  const double start = levels_.at(i), end = levels_.at(i + 1);
  const at::Tensor x0 = clean_of(velocity, x, start);
  const double keep = root((1.0 - end) / (1.0 - start));
  return x.mul(keep) + x0.mul(root(end) - (root(start) * keep));
}

at::Tensor Solver::dpm_step(const at::Tensor& velocity, const at::Tensor& x, std::size_t i,
                            at::Tensor& state, const at::Tensor& noise) const {
  const double start = levels_.at(i), end = levels_.at(i + 1);
  const at::Tensor before = state;
  at::Tensor x0 = clean_of(velocity, x, start);
  state = x0;
  if (!takes_noise(i)) return x0;
  const double now = log_snr(start);
  const double span = log_snr(end) - now;
  at::Tensor aim = x0;
  if (before.defined()) {
    const double past = span / (2.0 * (now - log_snr(levels_.at(i - 1))));
    aim = x0.mul(1.0 + past) - before.mul(past);
  }
  const double keep = root((1.0 - end) / (1.0 - start)) * std::exp(-span);
  const double gain = -std::expm1(-2.0 * span);
  return x.mul(keep) + aim.mul(gain * root(end)) + noise.mul(root((1.0 - end) * gain));
}

}  // namespace livereel

#include "track.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/remainder.h>

namespace livereel {
namespace {

constexpr double kWidth = 1.0;  // latent pixels: a bump's standard deviation

bool open(const at::Tensor& position) { return position.isnan().any().item<bool>(); }

// Squared distance of each latent pixel's center from places along an axis, [F, side].
at::Tensor squared(const at::Tensor& places, std::int64_t side, bool wraps) {
  const auto length = static_cast<double>(side);
  at::Tensor away = at::arange(side, at::kDouble) + 0.5 - places.unsqueeze(1) * length;
  if (wraps) away = at::remainder(away + length / 2, length) - length / 2;
  return away.square();
}

}  // namespace

at::Tensor glide(const at::Tensor& start, const at::Tensor& goal, std::int64_t frames, bool wraps) {
  if (open(start) || open(goal)) return goal.unsqueeze(0);
  at::Tensor way = goal - start;
  if (wraps) way = at::remainder(way + 0.5, 1) - 0.5;
  const at::Tensor share = at::arange(1, frames + 1, at::kDouble).unsqueeze(1) / frames;
  at::Tensor path = (start + share * way).narrow(0, 0, frames - 1);
  if (wraps) path = at::remainder(path, 1);
  return at::cat({path, goal.unsqueeze(0)});
}

at::Tensor draw_maps(const at::Tensor& track, const MapsOf& of) {
  const std::int64_t frames = frames_of(of.latents, of.factor, of.first);
  const at::Tensor held = at::arange(frames).clamp_max(track.size(0) - 1);
  at::Tensor positions = track.index_select(0, held);
  if (of.first) {
    positions = at::cat({positions.narrow(0, 0, 1).expand({of.factor - 1, -1}), positions});
  }
  const at::Tensor rows = squared(positions.select(1, 1), of.height, of.wraps);
  const at::Tensor columns = squared(positions.select(1, 0), of.width, of.wraps);
  const at::Tensor distance = rows.unsqueeze(2) + columns.unsqueeze(1);  // [F, H, W]
  const at::Tensor maps = at::exp(distance / (-2 * kWidth * kWidth)).nan_to_num(0.0);
  return maps.to(at::kFloat)
      .view({of.latents, of.factor, of.height, of.width})
      .transpose(0, 1)
      .unsqueeze(0);
}

std::int64_t frames_of(std::int64_t latents, std::int64_t factor, bool first) {
  return (latents * factor) - (first ? factor - 1 : 0);
}

}  // namespace livereel

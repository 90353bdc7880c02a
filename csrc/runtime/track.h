// Where in the picture a stream's object shall be, as channels behind the latents' own; the same
// arithmetic, to the bit, as `livereel.engine.sampling.track`.
//
// A track holds positions [F, 2], fp64: (x, y) in shares of width and height, NaN where open.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace livereel {

constexpr std::int64_t kMaxTrack = 100'000;  // positions

// Positions [frames, 2] on the straight way from `start` [2], which is not among them, to `goal`
// [2], the last; only `goal` where one of them is open. Where the picture `wraps`, the way is the
// shorter one, perhaps over its edge.
at::Tensor glide(const at::Tensor& start, const at::Tensor& goal, std::int64_t frames, bool wraps);

// The latents that maps are drawn for: so many frames, each of so many pixel frames (the `first` of
// a stream of one), of so many pixels; whether what leaves at one edge comes back at the other.
struct MapsOf {
  std::int64_t latents;
  std::int64_t factor;
  std::int64_t height;
  std::int64_t width;
  bool first;
  bool wraps;
};

// Maps [1, factor, latents, height, width], fp32, with a bump at each position of the track, the
// last of which holds on; zeros where it is open.
at::Tensor draw_maps(const at::Tensor& track, const MapsOf& of);

// Pixel frames that so many latent frames stand for.
std::int64_t frames_of(std::int64_t latents, std::int64_t factor, bool first);

}  // namespace livereel

// Convolutions of frames, channels last, as products with packed weights: each place of the kernel
// is a tap. What the kernel sees beyond the picture is laid out in memory, so taps need no checks.
#pragma once

#include <cstddef>

#include "bfloat16.h"
#include "cpu/dot.h"

namespace livereel::cpu {

// Frames `[frames, height, width, channels]`, dense.
struct Frames {
  BFloat16* data;
  std::size_t frames, height, width, channels;
};

// Copies the frames of `past` and those of `x` behind them into `out`, each within a border of
// zeros. What `out` has more than x in frames is past (zeros where `past` is null), in height and
// width border. With `gain`, frames of x become silu(x / |x| * gain), |.| over the channels; past
// ones are what they are. As many of the newest frames as there are past ones go to `kept`, without
// border.
void pad(const Frames& x, const BFloat16* past, const float* gain, const Frames& out,
         BFloat16* kept, int threads);

// Where a convolution writes: pixel (t, h, w) at data + t * frame + h * row + w * pixel, its
// channels side by side.
struct Pixels {
  BFloat16* data;
  std::ptrdiff_t frame, row, pixel;
};

// A kernel's place: frames, rows and columns from the first it sees.
struct Tap {
  std::ptrdiff_t frame, row, column;
};

// out[t, h, w] = sum over taps of weights[tap] * x[t + frame, h + row, w + column] + bias, plus
// `residual` where there is one, laid out as `out` is. Gives frames of frames x height x width.
struct Conv {
  const PackedMatrix* weights;
  const Tap* taps;  // as many as the weights have
  const float* bias;
  std::size_t frames, height, width;
};
void convolve(const Frames& x, const Conv& conv, const BFloat16* residual, const Pixels& out,
              int threads);

}  // namespace livereel::cpu

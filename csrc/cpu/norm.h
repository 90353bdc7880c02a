// LayerNorm with gains from a timestep, and the RMS norm and rotation of queries and keys, over
// bfloat16 rows. Sums and products are fp32.
#pragma once

#include <cstddef>
#include <vector>

#include "bfloat16.h"

namespace livereel::cpu {

// y = (x - mean) / sqrt(variance + eps) * (offset + scale) + shift, over rows of `width`. Each
// `gain_rows` rows share one row of `scale` and `shift`. x and y are dense and may be the same.
void layer_norm(const BFloat16* x, std::size_t rows, std::size_t width, const float* scale,
                const float* shift, std::size_t gain_rows, float offset, float eps, BFloat16* y,
                int threads);

// Rotation by position: pairs of neighbors, (x0, x1) to (x0 cos - x1 sin, x1 cos + x0 sin). Both
// tables are [positions, head]; `sin` carries the sign, minus at even places. Row r is at position
// r % positions.
struct Rotation {
  const float* cos = nullptr;
  const float* sin = nullptr;
  std::size_t positions = 1;
  std::size_t head = 0;  // width of a head, even
};

// normed = x / sqrt(mean(x^2) + eps) * gain (x itself where gain is null), rotated = that, rotated.
// Either output may be null, and `normed` may be x. Rows of x are `stride` items apart, those of
// the outputs `width`.
struct NormRotate {
  const BFloat16* x;
  std::ptrdiff_t stride;
  const float* gain;
  BFloat16* normed;
  BFloat16* rotated;
};

// All of `jobs` over as many rows of one width: queries and keys go together.
void rms_norm_rotate(const std::vector<NormRotate>& jobs, std::size_t rows, std::size_t width,
                     float eps, const Rotation& rotation, int threads);

}  // namespace livereel::cpu

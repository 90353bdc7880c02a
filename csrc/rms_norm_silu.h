// RMS norm over channels and SiLU in one pass over channels-last rows, for the CPU.
//
//   y[r, c] = silu(x[r, c] / max(|x[r, :]|, 1e-12) * gain[c]),   silu(v) = v / (1 + exp(-v))
//
// with |.| the Euclidean norm. Sums and products are fp32; half precision is rounded to nearest
// even once, at the end. `gain` is the learned gain times sqrt(channels). x and y may be the same.
#pragma once

#include <cstddef>

#include "bfloat16.h"

namespace livereel {

void rms_norm_silu(const float* x, const float* gain, float* y, std::size_t rows,
                   std::size_t channels);
void rms_norm_silu(const BFloat16* x, const float* gain, BFloat16* y, std::size_t rows,
                   std::size_t channels);

}  // namespace livereel

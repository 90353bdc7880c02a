// From the decoder's last convolution to pictures.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bfloat16.h"

namespace livereel::cpu {

// x[rows, width, 3 * patch * patch], channels in the order (color, column, row) of a patch, to
// y[rows * patch, width * patch, 3], clamped to [-1, 1]. `rows` counts those of all frames.
void unfold(const BFloat16* x, std::size_t rows, std::size_t width, std::size_t patch, BFloat16* y,
            int threads);

// [-1, 1] to 0..255, rounded to nearest; what is beyond is clamped.
void to_bytes(const BFloat16* x, std::size_t count, std::uint8_t* y, int threads);

}  // namespace livereel::cpu

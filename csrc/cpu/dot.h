// The kernel under all of this folder's: products of bfloat16 rows with a packed matrix, summed in
// fp32 by AVX512-BF16's vdpbf16ps, which multiplies 16 pairs at once.
//
//   out[r, n] = sum over taps t and depths k of a[r * stride + tap[t] + k] * w[n, t, k]
//
// A linear layer has one tap, a convolution one for each of its kernel's places: a tap is how far
// from the row's first number those numbers lie that it multiplies.
#pragma once

#include <cstddef>

#include "bfloat16.h"
#include "cpu/aligned.h"

namespace livereel::cpu {

// Outputs of a panel, two vectors wide: with 12 rows they fill 24 of the 32 registers.
constexpr std::size_t kPanel = 32;
// Sums of the largest tile, in floats.
constexpr std::size_t kTileSums = 384;
// Rows of the highest tile of a panel with room for 16 or 32 outputs.
constexpr std::size_t tile_rows(std::size_t room) { return kTileSums / room; }

// [n, t, k] cut into panels of 32 outputs (the last may be 16), each laid out [t, k / 2, outputs,
// 2] so that a vector has 16 outputs' next pair. Outputs are filled up with zeros.
class PackedMatrix {
 public:
  // `weights` holds [outputs, depth, taps] with the given strides, in items. Depth must be even.
  PackedMatrix(const BFloat16* weights, std::size_t outputs, std::size_t taps, std::size_t depth,
               std::ptrdiff_t output_stride, std::ptrdiff_t tap_stride,
               std::ptrdiff_t depth_stride);

  [[nodiscard]] std::size_t outputs() const { return outputs_; }
  [[nodiscard]] std::size_t taps() const { return taps_; }
  [[nodiscard]] std::size_t depth() const { return depth_; }
  [[nodiscard]] std::size_t panels() const { return (outputs_ + kPanel - 1) / kPanel; }
  // Outputs that panel `p` has room for: 16 or 32.
  [[nodiscard]] std::size_t room(std::size_t p) const {
    return outputs_ - p * kPanel <= 16 ? 16 : kPanel;
  }
  [[nodiscard]] const BFloat16* panel(std::size_t p) const {
    return data_.get() + p * kPanel * taps_ * depth_;
  }

 private:
  std::size_t outputs_, taps_, depth_;
  Aligned<BFloat16> data_;
};

// Products of `rows` rows with one panel, into out[rows, room]. Rows of `a` are `stride` items
// apart. At most tile_rows(room) rows.
void dot_tile(const BFloat16* a, std::ptrdiff_t stride, std::size_t rows, const std::ptrdiff_t* tap,
              std::size_t taps, std::size_t depth, const BFloat16* panel, std::size_t room,
              float* out);

}  // namespace livereel::cpu

#include "rms_norm_silu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// One binary, the widest vectors that the machine has: GCC compiles the loop once for each target
// and picks at load. It knows these targets from version 12 on, and of the C libraries glibc picks.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && \
    !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define LIVEREEL_WIDEST \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LIVEREEL_WIDEST
#endif
#if defined(__GNUC__) || defined(__clang__)
#define LIVEREEL_INLINE inline __attribute__((always_inline))
#else
#define LIVEREEL_INLINE inline
#endif

namespace livereel {
namespace {

LIVEREEL_INLINE float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

LIVEREEL_INLINE std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

LIVEREEL_INLINE float load(float x) { return x; }
LIVEREEL_INLINE float load(BFloat16 x) { return as_float(std::uint32_t{x.bits} << 16); }

LIVEREEL_INLINE void store(float value, float& out) { out = value; }
LIVEREEL_INLINE void store(float value, BFloat16& out) {
  const std::uint32_t bits = as_bits(value);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding must not carry a NaN into infinity.
  out.bits = static_cast<std::uint16_t>(value == value ? rounded : 0x7fc0);
}

// exp on [-87, 87] to about 2e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2].
LIVEREEL_INLINE float exp_bounded(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::uint32_t exponent = (as_bits(shifted) - as_bits(magic) + 127u) << 23;
  return p * as_float(exponent);
}

LIVEREEL_INLINE float silu(float v) {
  const float bounded = v < -87.0f ? -87.0f : (v > 87.0f ? 87.0f : v);
  return v / (1.0f + exp_bounded(-bounded));
}

template <typename T>
LIVEREEL_INLINE float squares(const T* x, std::size_t channels) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t c = 0; c < channels; ++c) {
    const float v = load(x[c]);
    sum += v * v;
  }
  return sum;
}

// Rows go in blocks, so that one row's sum, root and quotient do not wait for another's.
template <typename T>
LIVEREEL_INLINE void rows_of(const T* x, const float* gain, T* y, std::size_t rows,
                             std::size_t channels) {
  constexpr std::size_t kBlock = 32;
  float scale[kBlock];
  for (std::size_t first = 0; first < rows; first += kBlock) {
    const std::size_t count = std::min(kBlock, rows - first);
    const T* from = x + first * channels;
    T* to = y + first * channels;
    for (std::size_t r = 0; r < count; ++r) scale[r] = squares(from + r * channels, channels);
#pragma omp simd
    for (std::size_t r = 0; r < count; ++r) {
      scale[r] = 1.0f / std::max(std::sqrt(scale[r]), 1e-12f);
    }
    for (std::size_t r = 0; r < count; ++r, from += channels, to += channels) {
#pragma omp simd
      for (std::size_t c = 0; c < channels; ++c) {
        store(silu(load(from[c]) * scale[r] * gain[c]), to[c]);
      }
    }
  }
}

}  // namespace

LIVEREEL_WIDEST void rms_norm_silu(const float* x, const float* gain, float* y, std::size_t rows,
                                   std::size_t channels) {
  rows_of(x, gain, y, rows, channels);
}

LIVEREEL_WIDEST void rms_norm_silu(const BFloat16* x, const float* gain, BFloat16* y,
                                   std::size_t rows, std::size_t channels) {
  rows_of(x, gain, y, rows, channels);
}

}  // namespace livereel

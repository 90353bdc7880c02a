// Numbers in bfloat16 for the tests of csrc/cpu.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "bfloat16.h"
#include "cpu/supported.h"

namespace livereel {

// Where the processor lacks what the kernels need, the test is skipped (CTest's SKIP_RETURN_CODE).
inline void skip_if_unsupported() {
  if (cpu::supported()) return;
  std::puts("no AVX512-BF16 here");
  std::exit(77);
}

inline double value(BFloat16 half) {
  const std::uint32_t wide = std::uint32_t{half.bits} << 16;
  float result = 0.0f;
  std::memcpy(&result, &wide, sizeof(result));
  return static_cast<double>(result);
}

// In [-1, 1), different for each seed and index.
inline float noise(std::uint64_t seed, std::size_t i) {
  std::uint64_t x = (seed * 1000003 + i + 1) * 0x9e3779b97f4a7c15;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9;
  return static_cast<float>(x >> 40) / static_cast<float>(1 << 23) - 1.0f;
}

inline std::vector<float> floats(std::uint64_t seed, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = noise(seed, i);
  return values;
}

inline std::vector<BFloat16> halves(std::uint64_t seed, std::size_t count) {
  std::vector<BFloat16> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float x = noise(seed, i);
    std::uint32_t wide = 0;
    std::memcpy(&wide, &x, sizeof(wide));
    values[i].bits = static_cast<std::uint16_t>(wide >> 16);
  }
  return values;
}

// NaNs, to be written over.
inline std::vector<BFloat16> poison(std::size_t count) {
  return std::vector<BFloat16>(count, BFloat16{0x7fc0});
}

// Whether `got` is `wanted` but for bfloat16's rounding, of values as large as `scale`.
inline bool close(BFloat16 got, double wanted, double scale = 1.0) {
  return std::abs(value(got) - wanted) <= 0.004 * std::abs(wanted) + 0.0005 * scale;
}

}  // namespace livereel

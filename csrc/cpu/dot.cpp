#include "cpu/dot.h"

#include <array>
#include <cstring>
#include <utility>

#include "cpu/avx512.h"

namespace livereel::cpu {
namespace {

// Row by row the same sums in the same order, whatever the tile: results do not depend on tiling.
// A stride known beforehand, `kStride`, lets one register point at all rows where one vector wide
// tiles would run out of them (0: it is not known).
template <std::size_t kRows, std::size_t kVectors, std::ptrdiff_t kStride>
void tile(const BFloat16* a, std::ptrdiff_t any_stride, const std::ptrdiff_t* tap, std::size_t taps,
          std::size_t depth, const BFloat16* panel, float* out) {
  const std::ptrdiff_t stride = kStride == 0 ? any_stride : kStride;
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 24
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (std::size_t t = 0; t < taps; ++t) {
    const BFloat16* from = a + tap[t];
    for (std::size_t k = 0; k < depth; k += 2, panel += 2 * kLanes * kVectors) {
      __m512bh w[kVectors];
#pragma GCC unroll 2
      for (std::size_t v = 0; v < kVectors; ++v) {
        w[v] = reinterpret_cast<__m512bh>(_mm512_load_si512(panel + 2 * kLanes * v));
      }
#pragma GCC unroll 24
      for (std::size_t r = 0; r < kRows; ++r) {
        std::int32_t pair;
        std::memcpy(&pair, from + static_cast<std::ptrdiff_t>(r) * stride + k, sizeof(pair));
        const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
        for (std::size_t v = 0; v < kVectors; ++v) {
          sums[r][v] = _mm512_dpbf16_ps(sums[r][v], w[v], both);
        }
      }
    }
  }
#pragma GCC unroll 24
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v) {
      _mm512_store_ps(out + (r * kVectors + v) * kLanes, sums[r][v]);
    }
  }
}

using Tile = void (*)(const BFloat16*, std::ptrdiff_t, const std::ptrdiff_t*, std::size_t,
                      std::size_t, const BFloat16*, float*);

// By the number of rows, less one.
template <std::size_t kVectors, std::ptrdiff_t kStride, std::size_t... kRows>
constexpr std::array<Tile, sizeof...(kRows)> tiles(std::index_sequence<kRows...> /*rows*/) {
  return {&tile<kRows + 1, kVectors, kStride>...};
}

}  // namespace

PackedMatrix::PackedMatrix(const BFloat16* weights, std::size_t outputs, std::size_t taps,
                           std::size_t depth, std::ptrdiff_t output_stride,
                           std::ptrdiff_t tap_stride, std::ptrdiff_t depth_stride)
    : outputs_(outputs),
      taps_(taps),
      depth_(depth),
      data_(aligned<BFloat16>(panels() * kPanel * taps * depth)) {
  for (std::size_t p = 0; p < panels(); ++p) {
    BFloat16* to = data_.get() + p * kPanel * taps * depth;
    for (std::size_t t = 0; t < taps; ++t) {
      for (std::size_t k = 0; k < depth; k += 2) {
        for (std::size_t n = p * kPanel; n < p * kPanel + room(p); ++n) {
          for (std::size_t i = k; i < k + 2; ++i, ++to) {
            const std::ptrdiff_t from = static_cast<std::ptrdiff_t>(n) * output_stride +
                                        static_cast<std::ptrdiff_t>(t) * tap_stride +
                                        static_cast<std::ptrdiff_t>(i) * depth_stride;
            *to = n < outputs ? weights[from] : BFloat16{0};
          }
        }
      }
    }
  }
}

void dot_tile(const BFloat16* a, std::ptrdiff_t stride, std::size_t rows, const std::ptrdiff_t* tap,
              std::size_t taps, std::size_t depth, const BFloat16* panel, std::size_t room,
              float* out) {  // NOLINT(misc-const-correctness): tiles write to it
  static constexpr auto wide = tiles<2, 0>(std::make_index_sequence<12>());
  static constexpr auto narrow = tiles<1, 0>(std::make_index_sequence<24>());
  static constexpr auto narrow16 = tiles<1, 16>(std::make_index_sequence<24>());
  const Tile* tiles = room == kPanel ? wide.data() : stride == 16 ? narrow16.data() : narrow.data();
  tiles[rows - 1](a, stride, tap, taps, depth, panel, out);
}

}  // namespace livereel::cpu

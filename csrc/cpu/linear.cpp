#include "cpu/linear.h"

#include <algorithm>

#include "cpu/avx512.h"
#include "threads.h"

namespace livereel::cpu {
namespace {

// x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3).
__m512 gelu(__m512 x) {
  const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.0713548163f),
                                       _mm512_set1_ps(1.59576912f));
  return swish(x, cubic);
}

// Finishes the outputs [first, first + room) of row `row`.
void finish(const float* sums, std::size_t row, std::size_t first, std::size_t room,
            std::size_t outputs, const Epilogue& epilogue, BFloat16* y) {
  for (std::size_t n = 0; n < room; n += kLanes) {
    const std::size_t out = first + n;
    const __mmask16 mask = lanes(out < outputs ? outputs - out : 0);
    __m512 v = _mm512_loadu_ps(sums + n);
    if (epilogue.bias != nullptr) v = _mm512_add_ps(v, load(epilogue.bias + out, mask));
    if (epilogue.gelu) v = gelu(v);
    if (epilogue.residual != nullptr) {
      const __m512 before = load(epilogue.residual + row * outputs + out, mask);
      if (epilogue.gate == nullptr) {
        v = _mm512_add_ps(before, v);
      } else {
        const float* gate = epilogue.gate + row / epilogue.gate_rows * outputs;
        v = _mm512_fmadd_ps(load(gate + out, mask), v, before);
      }
    }
    store(y + row * outputs + out, mask, v);
  }
}

}  // namespace

void linear(const BFloat16* x, std::size_t rows, const PackedMatrix& weights,
            const Epilogue& epilogue, BFloat16* y, int threads) {
  const std::size_t depth = weights.depth(), outputs = weights.outputs();
  in_parts(rows, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
    constexpr std::ptrdiff_t tap = 0;
    alignas(64) float sums[kTileSums];
    for (std::size_t p = 0; p < weights.panels(); ++p) {
      const std::size_t room = weights.room(p);
      for (std::size_t first = begin, count; first < end; first += count) {
        count = std::min(tile_rows(room), end - first);
        dot_tile(x + first * depth, static_cast<std::ptrdiff_t>(depth), count, &tap, 1, depth,
                 weights.panel(p), room, sums);
        for (std::size_t r = 0; r < count; ++r) {
          finish(sums + r * room, first + r, p * kPanel, room, outputs, epilogue, y);
        }
      }
    }
  });
}

}  // namespace livereel::cpu

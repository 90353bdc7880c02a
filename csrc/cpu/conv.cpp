#include "cpu/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/aligned.h"
#include "cpu/avx512.h"
#include "threads.h"

namespace livereel::cpu {
namespace {

// silu(x / |x| * gain) of `pixels` pixels side by side. Pixels go in blocks, so that 16 share one
// root and one quotient.
void norm_silu(const BFloat16* x, const float* gain, std::size_t pixels, std::size_t channels,
               BFloat16* y) {
  for (std::size_t first = 0; first < pixels; first += kLanes) {
    const std::size_t count = std::min(kLanes, pixels - first);
    __m512 squares[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) {
      squares[i] = _mm512_setzero_ps();
      if (i >= count) continue;
      const BFloat16* from = x + (first + i) * channels;
      for (std::size_t c = 0; c < channels; c += kLanes) {
        const __m512 v = load(from + c, lanes(channels - c));
        squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
      }
    }
    const __m512 length = _mm512_max_ps(_mm512_sqrt_ps(sums_of(squares)), _mm512_set1_ps(1e-12f));
    alignas(64) float inverse[kLanes];
    _mm512_store_ps(inverse, _mm512_div_ps(_mm512_set1_ps(1.0f), length));
    for (std::size_t i = 0; i < count; ++i) {
      const BFloat16* from = x + (first + i) * channels;
      BFloat16* to = y + (first + i) * channels;
      for (std::size_t c = 0; c < channels; c += kLanes) {
        const __mmask16 mask = lanes(channels - c);
        const __m512 unit = _mm512_mul_ps(load(from + c, mask), _mm512_set1_ps(inverse[i]));
        store(to + c, mask, swish(_mm512_mul_ps(unit, load(gain + c, mask)), _mm512_set1_ps(1.0f)));
      }
    }
  }
}

void zero(BFloat16* to, std::size_t count) { std::memset(to, 0, count * sizeof(BFloat16)); }

void copy(const BFloat16* from, std::size_t count, BFloat16* to) {
  std::memcpy(to, from, count * sizeof(BFloat16));
}

}  // namespace

void pad(const Frames& x, const BFloat16* past, const float* gain, const Frames& out,
         BFloat16* kept, int threads) {
  const std::size_t history = out.frames - x.frames;
  const std::size_t top = (out.height - x.height) / 2, side = (out.width - x.width) / 2;
  const std::size_t line = x.width * x.channels, wide = out.width * out.channels;
  const std::size_t margin = side * x.channels;
  in_parts(out.frames * out.height, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t t = i / out.height, h = i % out.height - top;
      BFloat16* to = out.data + i * wide;
      if (i % out.height < top || h >= x.height) {
        zero(to, wide);
        continue;
      }
      zero(to, margin);
      zero(to + margin + line, wide - margin - line);
      to += margin;
      if (t >= history) {
        const BFloat16* from = x.data + ((t - history) * x.height + h) * line;
        gain == nullptr ? copy(from, line, to) : norm_silu(from, gain, x.width, x.channels, to);
      } else if (past != nullptr) {
        copy(past + (t * x.height + h) * line, line, to);
      } else {
        zero(to, line);
      }
      if (t >= x.frames && history > 0)
        copy(to, line, kept + ((t - x.frames) * x.height + h) * line);
    }
  });
}

void convolve(const Frames& x, const Conv& conv, const BFloat16* residual, const Pixels& out,
              int threads) {
  const PackedMatrix& weights = *conv.weights;
  const auto row = static_cast<std::ptrdiff_t>(x.width * x.channels);
  const auto frame = static_cast<std::ptrdiff_t>(x.height) * row;
  const auto pixel = static_cast<std::ptrdiff_t>(x.channels);
  const Aligned<std::ptrdiff_t> taps = aligned<std::ptrdiff_t>(weights.taps());
  for (std::size_t i = 0; i < weights.taps(); ++i) {
    const Tap& tap = conv.taps[i];
    taps[i] = tap.frame * frame + tap.row * row + tap.column * pixel;
  }
  in_parts(
      conv.frames * conv.height, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
        alignas(64) float sums[kTileSums];
        for (std::size_t p = 0; p < weights.panels(); ++p) {
          const std::size_t room = weights.room(p), first = p * kPanel;
          const std::size_t outputs = std::min(room, weights.outputs() - first);
          const std::size_t tiles = (conv.width + tile_rows(room) - 1) / tile_rows(room);
          for (std::size_t i = begin; i < end; ++i) {
            const auto t = static_cast<std::ptrdiff_t>(i / conv.height);
            const auto h = static_cast<std::ptrdiff_t>(i % conv.height);
            for (std::size_t tile = 0; tile < tiles; ++tile) {
              const std::size_t left = conv.width * tile / tiles;
              const std::size_t count = conv.width * (tile + 1) / tiles - left;
              dot_tile(x.data + t * frame + h * row + static_cast<std::ptrdiff_t>(left) * pixel,
                       pixel, count, taps.get(), weights.taps(), x.channels, weights.panel(p), room,
                       sums);
              for (std::size_t r = 0; r < count; ++r) {
                const std::ptrdiff_t at = t * out.frame + h * out.row +
                                          static_cast<std::ptrdiff_t>(left + r) * out.pixel +
                                          static_cast<std::ptrdiff_t>(first);
                for (std::size_t n = 0; n < outputs; n += kLanes) {
                  const __mmask16 mask = lanes(outputs - n);
                  __m512 v = _mm512_loadu_ps(sums + r * room + n);
                  if (conv.bias != nullptr) v = _mm512_add_ps(v, load(conv.bias + first + n, mask));
                  if (residual != nullptr) {
                    v = _mm512_add_ps(v,
                                      load(residual + at + static_cast<std::ptrdiff_t>(n), mask));
                  }
                  store(out.data + at + static_cast<std::ptrdiff_t>(n), mask, v);
                }
              }
            }
          }
        }
      });
}

}  // namespace livereel::cpu

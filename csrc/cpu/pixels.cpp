#include "cpu/pixels.h"

#include "cpu/avx512.h"
#include "threads.h"

namespace livereel::cpu {
namespace {

constexpr std::size_t kColors = 3;

__m512 clamped(__m512 v) {
  return _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-1.0f)), _mm512_set1_ps(1.0f));
}

}  // namespace

void unfold(const BFloat16* x, std::size_t rows, std::size_t width, std::size_t patch, BFloat16* y,
            int threads) {
  const std::size_t channels = kColors * patch * patch, line = width * patch * kColors;
  in_parts(rows, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin * width; i < end * width; ++i) {
      const BFloat16* from = x + i * channels;
      BFloat16* corner = y + i / width * patch * line + i % width * patch * kColors;
      for (std::size_t row = 0; row < patch; ++row) {
        for (std::size_t column = 0; column < patch; ++column) {
          for (std::size_t color = 0; color < kColors; ++color) {
            corner[row * line + column * kColors + color] =
                from[(color * patch + column) * patch + row];
          }
        }
      }
    }
    BFloat16* first = y + begin * patch * line;
    const std::size_t count = (end - begin) * patch * line;
    for (std::size_t i = 0; i < count; i += kLanes) {
      const __mmask16 mask = lanes(count - i);
      store(first + i, mask, clamped(load(first + i, mask)));
    }
  });
}

void to_bytes(const BFloat16* x, std::size_t count, std::uint8_t* y, int threads) {
  in_parts((count + kLanes - 1) / kLanes, threads,
           [&](std::size_t, std::size_t begin, std::size_t end) {
             for (std::size_t i = begin * kLanes; i < end * kLanes; i += kLanes) {
               const __mmask16 mask = lanes(count - i);
               const __m512 scaled =
                   _mm512_mul_ps(_mm512_add_ps(clamped(load(x + i, mask)), _mm512_set1_ps(1.0f)),
                                 _mm512_set1_ps(127.5f));
               const __m512i whole =
                   _mm512_cvt_roundps_epi32(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
               _mm512_mask_cvtusepi32_storeu_epi8(y + i, mask, whole);
             }
           });
}

}  // namespace livereel::cpu

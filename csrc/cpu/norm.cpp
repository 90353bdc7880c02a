#include "cpu/norm.h"

#include <cmath>

#include "cpu/avx512.h"
#include "threads.h"

namespace livereel::cpu {
namespace {

void norm_rotate_row(const NormRotate& job, std::size_t r, std::size_t width, float eps,
                     const Rotation& rotation) {
  constexpr int kSwapNeighbors = 0b10'11'00'01;
  const BFloat16* from = job.x + static_cast<std::ptrdiff_t>(r) * job.stride;
  __m512 inverse = _mm512_set1_ps(1.0f);
  if (job.gain != nullptr) {
    __m512 squares = _mm512_setzero_ps();
    for (std::size_t i = 0; i < width; i += kLanes) {
      const __m512 v = load(from + i, lanes(width - i));
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    inverse = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
  }
  // Heads one by one: a vector never spans two of them.
  const std::size_t head = job.rotated == nullptr ? width : rotation.head;
  const std::size_t place = r % rotation.positions * rotation.head;
  for (std::size_t first = 0; first < width; first += head) {
    for (std::size_t i = 0; i < head; i += kLanes) {
      const __mmask16 mask = lanes(head - i);
      const std::size_t at = first + i;
      __m512 v = load(from + at, mask);
      if (job.gain != nullptr) {
        v = _mm512_mul_ps(_mm512_mul_ps(v, inverse), load(job.gain + at, mask));
      }
      if (job.normed != nullptr) store(job.normed + r * width + at, mask, v);
      if (job.rotated == nullptr) continue;
      const __m512 swapped = _mm512_permute_ps(v, kSwapNeighbors);
      const __m512 turned = _mm512_mul_ps(swapped, load(rotation.sin + place + i, mask));
      store(job.rotated + r * width + at, mask,
            _mm512_fmadd_ps(v, load(rotation.cos + place + i, mask), turned));
    }
  }
}

}  // namespace

void layer_norm(const BFloat16* x, std::size_t rows, std::size_t width, const float* scale,
                const float* shift, std::size_t gain_rows, float offset, float eps, BFloat16* y,
                int threads) {
  const auto count = static_cast<float>(width);
  in_parts(rows, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      const BFloat16* from = x + r * width;
      __m512 sum = _mm512_setzero_ps();
      for (std::size_t i = 0; i < width; i += kLanes) {
        sum = _mm512_add_ps(sum, load(from + i, lanes(width - i)));
      }
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / count);
      __m512 squares = _mm512_setzero_ps();
      for (std::size_t i = 0; i < width; i += kLanes) {
        const __mmask16 mask = lanes(width - i);
        const __m512 v = _mm512_maskz_sub_ps(mask, load(from + i, mask), mean);
        squares = _mm512_fmadd_ps(v, v, squares);
      }
      const __m512 inverse =
          _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / count + eps));
      const float* gains = scale + r / gain_rows * width;
      const float* shifts = shift + r / gain_rows * width;
      for (std::size_t i = 0; i < width; i += kLanes) {
        const __mmask16 mask = lanes(width - i);
        const __m512 gain = _mm512_add_ps(_mm512_set1_ps(offset), load(gains + i, mask));
        const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load(from + i, mask), mean), inverse);
        store(y + r * width + i, mask, _mm512_fmadd_ps(v, gain, load(shifts + i, mask)));
      }
    }
  });
}

void rms_norm_rotate(const std::vector<NormRotate>& jobs, std::size_t rows, std::size_t width,
                     float eps, const Rotation& rotation, int threads) {
  in_parts(rows, threads, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      for (const NormRotate& job : jobs) norm_rotate_row(job, r, width, eps, rotation);
    }
  });
}

}  // namespace livereel::cpu

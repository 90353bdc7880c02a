// Vectors of 16 floats, and what the kernels of this folder do with them. Files that include this
// are compiled for AVX512-BF16 whatever machine the build is for, so they must not instantiate
// templates that others use too: the linker might take theirs for all.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "bfloat16.h"

namespace livereel::cpu {

constexpr std::size_t kLanes = 16;

// The first `count` lanes, at most all.
inline __mmask16 lanes(std::size_t count) {
  return count >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m512 load(const BFloat16* from, __mmask16 mask) {
  return widen(_mm256_maskz_loadu_epi16(mask, from));
}

inline __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }

// Rounded to nearest even; denormals become zero.
inline void store(BFloat16* to, __mmask16 mask, __m512 values) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

inline void store(float* to, __mmask16 mask, __m512 values) {
  _mm512_mask_storeu_ps(to, mask, values);
}

// To about 3e-6 relative, a thousandth of what rounding to bfloat16 costs: 2^n times a polynomial
// in
// [-1/2, 1/2]. 0 far below, infinite far above.
inline __m512 exp2(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00957008f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.055917838f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240247451f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693121818f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.999999261f));
  return _mm512_scalef_ps(p, n);
}

constexpr float kLog2e = 1.44269504f;

// x / (1 + exp(-k x)), to about 6e-5 relative: SiLU for k = 1.
inline __m512 swish(__m512 x, __m512 k) {
  const __m512 e = exp2(_mm512_mul_ps(_mm512_mul_ps(x, k), _mm512_set1_ps(-kLog2e)));
  return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

inline __m512 across(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// The sum of each of 16 vectors, in their order.
inline __m512 sums_of(const __m512 (&v)[16]) {
  __m512 pairs[8], fours[4];
  for (std::size_t i = 0; i < 8; ++i) {
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                             _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  }
  for (std::size_t i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return across(across(fours[0], fours[1]), across(fours[2], fours[3]));
}

}  // namespace livereel::cpu

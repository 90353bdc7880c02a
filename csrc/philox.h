// Noise as a function of (seed, chunk, step) alone.
//
// Generator: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011), a bijection of a 128-bit counter under a 64-bit key. No state is kept, so any number of
// any chunk can be had at once, in any order and in any language.
//
//   key     = (seed low 32 bits, seed high 32 bits)
//   counter = (block, step, chunk low 32 bits, chunk high 32 bits)
//
// Block b yields the normals 4b, 4b + 1, 4b + 2 and 4b + 3 of the stream; a tensor is filled in
// row-major order. The four words x0..x3 of a block make two pairs by Box and Muller's transform,
// (x0, x1) the first and (x2, x3) the second. For the words (x, y) of a pair:
//
//   u      = float(x) * 2^-32 + 2^-33                    in (0, 1]
//   r      = sqrt(-2 ln u)                               at most 6.77
//   q      = ((y + 2^29) mod 2^32) >> 30                 the nearest quarter turn, 0..3
//   a      = float(int32(y - 2^30 q)) * float(pi / 2^31) in [-pi/4, pi/4]
//   (c, s) = (cos a, sin a), turned by q quarters:
//            q = 0: (c, s), 1: (-s, c), 2: (-c, -s), 3: (s, -c)
//   the normals are r * c, then r * s.
//
// The numbers must be the same on every machine, so nothing is left to libm. Everything is IEEE 754
// binary32, rounded to nearest, without fused multiply-add; float() rounds an integer to nearest;
// sums are evaluated as bracketed (Horner's rule) and coefficients are rounded to binary32:
//
//   ln u:  i = bits(u) - bits(sqrt(1/2) = 0x3f3504f3), e = i >> 23 (arithmetic),
//          m = float with bits (i & 0x7fffff) + 0x3f3504f3, in [sqrt(1/2), sqrt(2)), u = m 2^e;
//          f = m - 1, s = f / (2 + f), z = s s,
//          p = z (2/3 + z (2/5 + z (2/7 + z 2/9))),
//          ln u = e 0.693359375 + (e -2.12194440e-4 + (s p + 2 s))
//   sin a: z = a a, a + a (z (-1/3! + z (1/5! + z (-1/7! + z 1/9!))))
//   cos a: z = a a, 1 + z (-1/2! + z (1/4! + z (-1/6! + z (1/8! + z -1/10!))))
//
// Given u, the result is within 3e-7 r of the exact transform. Negative zero occurs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace livereel {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

// The largest number of normals that one (seed, chunk, step) holds: 2^32 blocks of four.
inline constexpr std::uint64_t kMaxNormals = std::uint64_t{1} << 34;

// One block of Philox 4x32-10.
PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) noexcept;

// Writes the first `count` normals of (seed, chunk, step) to `out`. `count` is at most kMaxNormals.
void fill_normal(std::uint64_t seed, std::uint64_t chunk, std::uint32_t step, float* out,
                 std::size_t count) noexcept;

}  // namespace livereel

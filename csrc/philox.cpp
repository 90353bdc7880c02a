#include "philox.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#ifdef __FAST_MATH__
#error "philox.cpp must be built without -ffast-math: its numbers are part of the product"
#endif
static_assert(FLT_EVAL_METHOD == 0,
              "binary32 arithmetic must not be carried out in wider registers");

namespace livereel {
namespace {

constexpr std::uint32_t kMultiply0 = 0xD2511F53U;
constexpr std::uint32_t kMultiply1 = 0xCD9E8D57U;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;  // golden ratio
constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;  // sqrt(3) - 1
constexpr int kRounds = 10;

inline void philox(std::uint32_t& x0, std::uint32_t& x1, std::uint32_t& x2, std::uint32_t& x3,
                   std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{kMultiply0} * x0;
    const std::uint64_t p1 = std::uint64_t{kMultiply1} * x2;
    x0 = static_cast<std::uint32_t>(p1 >> 32) ^ x1 ^ k0;
    x1 = static_cast<std::uint32_t>(p1);
    x2 = static_cast<std::uint32_t>(p0 >> 32) ^ x3 ^ k1;
    x3 = static_cast<std::uint32_t>(p0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
}

inline std::int32_t bits_of(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bits(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float natural_log(float u) {
  constexpr std::int32_t kSqrtHalf = 0x3f3504f3;
  const std::int32_t i = bits_of(u) - kSqrtHalf;
  const auto e = static_cast<float>(i >> 23);
  const float f = from_bits((i & 0x7fffff) + kSqrtHalf) - 1.0F;
  const float s = f / (2.0F + f);
  const float z = s * s;
  const float p = z * (2.0F / 3.0F + z * (2.0F / 5.0F + z * (2.0F / 7.0F + z * (2.0F / 9.0F))));
  // ln 2 in two parts, the first exact in a few bits.
  // NOLINTNEXTLINE(modernize-use-std-numbers)
  return e * 0.693359375F + (e * -2.12194440e-4F + (s * p + 2.0F * s));
}

inline float sine(float a) {
  const float z = a * a;
  const float p =
      -1.0F / 6.0F + z * (1.0F / 120.0F + z * (-1.0F / 5040.0F + z * (1.0F / 362880.0F)));
  return a + a * (z * p);
}

inline float cosine(float a) {
  const float z = a * a;
  const float p =
      -1.0F / 2.0F +
      z * (1.0F / 24.0F + z * (-1.0F / 720.0F + z * (1.0F / 40320.0F + z * (-1.0F / 3628800.0F))));
  return 1.0F + z * p;
}

// Two words to two normals; free of branches, so that loops over it vectorize.
inline void box_muller(std::uint32_t x, std::uint32_t y, float& first, float& second) {
  const float u = static_cast<float>(x) * 0x1p-32F + 0x1p-33F;
  const float r = std::sqrt(-2.0F * natural_log(u));

  const std::uint32_t q = (y + 0x20000000U) >> 30;
  const float a = static_cast<float>(static_cast<std::int32_t>(y - (q << 30))) *
                  1.46291807926715968e-9F;  // pi / 2^31
  const std::int32_t c = bits_of(cosine(a));
  const std::int32_t s = bits_of(sine(a));
  const std::int32_t odd = -static_cast<std::int32_t>(q & 1U);
  const std::int32_t swap = (c ^ s) & odd;
  const std::uint32_t cos_sign = ((q + 1U) & 2U) << 30;
  const std::uint32_t sin_sign = (q & 2U) << 30;
  first = r * from_bits((c ^ swap) ^ static_cast<std::int32_t>(cos_sign));
  second = r * from_bits((s ^ swap) ^ static_cast<std::int32_t>(sin_sign));
}

constexpr std::size_t kBatch = 64;  // blocks at a time

// The normals of blocks `first` .. `first + kBatch - 1`.
void fill_batch(std::uint64_t seed, std::uint64_t chunk, std::uint32_t step, std::uint32_t first,
                float* out) {
  std::uint32_t x0[kBatch], x1[kBatch], x2[kBatch], x3[kBatch];
  for (std::size_t i = 0; i < kBatch; ++i) {
    std::uint32_t w0 = first + static_cast<std::uint32_t>(i);
    std::uint32_t w1 = step;
    auto w2 = static_cast<std::uint32_t>(chunk);
    auto w3 = static_cast<std::uint32_t>(chunk >> 32);
    philox(w0, w1, w2, w3, static_cast<std::uint32_t>(seed),
           static_cast<std::uint32_t>(seed >> 32));
    x0[i] = w0;
    x1[i] = w1;
    x2[i] = w2;
    x3[i] = w3;
  }
  for (std::size_t i = 0; i < kBatch; ++i) {
    box_muller(x0[i], x1[i], out[4 * i], out[4 * i + 1]);
    box_muller(x2[i], x3[i], out[4 * i + 2], out[4 * i + 3]);
  }
}

}  // namespace

PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) noexcept {
  philox(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return counter;
}

void fill_normal(std::uint64_t seed, std::uint64_t chunk, std::uint32_t step, float* out,
                 std::size_t count) noexcept {
  constexpr std::size_t kPerBatch = 4 * kBatch;
  std::uint32_t block = 0;
  while (count >= kPerBatch) {
    fill_batch(seed, chunk, step, block, out);
    block += kBatch;
    out += kPerBatch;
    count -= kPerBatch;
  }
  if (count > 0) {
    float rest[kPerBatch];
    fill_batch(seed, chunk, step, block, rest);
    std::copy(rest, rest + count, out);
  }
}

}  // namespace livereel

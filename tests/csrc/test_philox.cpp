#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "philox.h"

namespace {

using livereel::fill_normal;
using livereel::philox4x32_10;
using livereel::PhiloxCounter;
using livereel::PhiloxKey;

// The vectors for philox4x32-10 that Random123 publishes (tests/kat_vectors).
void known_answers() {
  constexpr std::uint32_t kOnes = 0xffffffffU;
  CHECK((philox4x32_10({0, 0, 0, 0}, {0, 0}) ==
         PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
         PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(
      (philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
       PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Every number, block by block, against the transform in double precision.
void follows_the_layout() {
  constexpr double kTau = 6.283185307179586;
  const std::uint64_t seed = 0x0123456789abcdefU;
  const std::uint64_t chunk = 0x8000000000000005U;
  const std::uint32_t step = 7;
  std::vector<float> out(4000);
  fill_normal(seed, chunk, step, out.data(), out.size());
  for (std::uint32_t block = 0; block < 1000; ++block) {
    const PhiloxCounter counter{block, step, 0x00000005U, 0x80000000U};
    const PhiloxCounter x = philox4x32_10(counter, PhiloxKey{0x89abcdefU, 0x01234567U});
    for (std::size_t pair = 0; pair < 2; ++pair) {
      const float u = static_cast<float>(x[2 * pair]) * 0x1p-32F + 0x1p-33F;
      const double r = std::sqrt(-2 * std::log(static_cast<double>(u)));
      const double angle = kTau * 0x1p-32 * x[2 * pair + 1];
      const float* got = &out[std::size_t{4} * block + 2 * pair];
      CHECK(std::fabs(got[0] - r * std::cos(angle)) <= 3e-7 * r);
      CHECK(std::fabs(got[1] - r * std::sin(angle)) <= 3e-7 * r);
    }
  }
}

// However many are asked for: the same beginning, and not a float beyond.
void any_count() {
  std::vector<float> whole(2000);
  fill_normal(1, 2, 3, whole.data(), whole.size());
  for (const std::size_t count : {0U, 1U, 3U, 4U, 255U, 256U, 257U, 1023U, 1999U}) {
    std::vector<float> part(count + 1, -99.0F);
    fill_normal(1, 2, 3, part.data(), count);
    CHECK(std::memcmp(part.data(), whole.data(), count * sizeof(float)) == 0);
    CHECK(part[count] == -99.0F);
  }
}

}  // namespace

int main() {
  known_answers();
  follows_the_layout();
  any_count();
}

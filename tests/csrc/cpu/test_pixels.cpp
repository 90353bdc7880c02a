// Folded pixels to pictures and bytes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../check.h"
#include "cpu/pixels.h"
#include "halves.h"

using namespace livereel;

int main() {
  skip_if_unsupported();
  constexpr std::size_t kRows = 3, kWidth = 5, kPatch = 2;
  auto folded = halves(1, kRows * kWidth * 12);
  folded[0].bits = 0x4000;  // 2
  auto pixels = poison(folded.size());
  cpu::unfold(folded.data(), kRows, kWidth, kPatch, pixels.data(), 2);
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    const std::size_t color = i % 3, column = i / 3 % (kWidth * kPatch);
    const std::size_t row = i / 3 / (kWidth * kPatch);
    const std::size_t channel = (color * kPatch + column % kPatch) * kPatch + row % kPatch;
    const std::size_t from = (row / kPatch * kWidth + column / kPatch) * 12 + channel;
    CHECK(value(pixels[i]) == std::min(value(folded[from]), 1.0));
  }

  std::vector<std::uint8_t> bytes(pixels.size(), 77);
  pixels[1].bits = 0x7f80;  // infinite
  pixels[2].bits = 0xc000;  // -2
  cpu::to_bytes(pixels.data(), bytes.size(), bytes.data(), 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const double x = std::clamp(value(pixels[i]), -1.0, 1.0);
    CHECK(std::abs(bytes[i] - (x + 1.0) * 127.5) <= 0.5 + 1e-4);
  }
  CHECK(bytes[1] == 255 && bytes[2] == 0);
  return 0;
}

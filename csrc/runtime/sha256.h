// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace livereel {

class Sha256 {
 public:
  void update(std::span<const std::byte> data);

  // The digest of all that came, as 64 hexadecimal digits. Call it once, last.
  [[nodiscard]] std::string finish();

 private:
  void block(const std::byte* data);

  std::array<std::uint32_t, 8> state_{0x6a09e667U, 0xbb67ae85U, 0x3c6ef372U, 0xa54ff53aU,
                                      0x510e527fU, 0x9b05688cU, 0x1f83d9abU, 0x5be0cd19U};
  std::array<std::byte, 64> rest_{};
  std::uint64_t bytes_ = 0;
};

}  // namespace livereel

// bfloat16 as 16 bits: the upper half of a float.
#pragma once

#include <cstdint>

namespace livereel {

struct BFloat16 {
  std::uint16_t bits;
};

}  // namespace livereel

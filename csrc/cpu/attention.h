// Unmasked softmax attention over keys and values that lie in one or several pieces.
#pragma once

#include <cstddef>
#include <vector>

#include "bfloat16.h"

namespace livereel::cpu {

// Heads of `tokens` tokens: number i's head h begins at data + i * token_stride + h * head_stride.
struct Heads {
  BFloat16* data;
  std::size_t tokens;
  std::ptrdiff_t token_stride;
  std::ptrdiff_t head_stride;
};

// out = softmax(q k^T / sqrt(width)) v for each of `heads` heads. All pieces of keys together are
// attended to; values have pieces of the same lengths. `width` must be even.
void attention(const Heads& q, const std::vector<Heads>& keys, const std::vector<Heads>& values,
               std::size_t heads, std::size_t width, const Heads& out, int threads);

}  // namespace livereel::cpu

// Attention over keys in pieces, against softmax in double precision.
#include <cmath>
#include <vector>

#include "../check.h"
#include "cpu/attention.h"
#include "halves.h"

using namespace livereel;

namespace {

// `[tokens, heads, width]`.
cpu::Heads view(std::vector<BFloat16>& data, std::size_t tokens, std::size_t heads,
                std::size_t width) {
  return {
      data.data(),
      tokens,
      static_cast<std::ptrdiff_t>(heads * width),
      static_cast<std::ptrdiff_t>(width),
  };
}

void check_size(std::size_t queries, const std::vector<std::size_t>& pieces, std::size_t heads,
                std::size_t width, int threads) {
  const std::size_t row = heads * width;
  auto q = halves(1, queries * row), out = poison(q.size());
  std::vector<std::vector<BFloat16>> k, v;
  std::vector<cpu::Heads> keys, values;
  for (const std::size_t tokens : pieces) {
    k.push_back(halves(2 + k.size(), tokens * row));
    v.push_back(halves(20 + k.size(), tokens * row));
  }
  std::vector<const BFloat16*> key, worth;
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    keys.push_back(view(k[p], pieces[p], heads, width));
    values.push_back(view(v[p], pieces[p], heads, width));
    for (std::size_t i = 0; i < pieces[p]; ++i) {
      key.push_back(k[p].data() + i * row);
      worth.push_back(v[p].data() + i * row);
    }
  }
  cpu::attention(view(q, queries, heads, width), keys, values, heads, width,
                 view(out, queries, heads, width), threads);
  for (std::size_t i = 0; i < queries; ++i) {
    for (std::size_t h = 0; h < heads; ++h) {
      std::vector<double> weights(key.size());
      double sum = 0.0;
      for (std::size_t m = 0; m < key.size(); ++m) {
        double score = 0.0;
        for (std::size_t c = h * width; c < (h + 1) * width; ++c) {
          score += value(q[i * row + c]) * value(key[m][c]);
        }
        weights[m] = std::exp(score / std::sqrt(static_cast<double>(width)));
        sum += weights[m];
      }
      for (std::size_t c = h * width; c < (h + 1) * width; ++c) {
        double wanted = 0.0;
        for (std::size_t m = 0; m < key.size(); ++m) {
          wanted += weights[m] / sum * value(worth[m][c]);
        }
        CHECK(close(out[i * row + c], wanted, 4.0));
      }
    }
  }
}

}  // namespace

int main() {
  skip_if_unsupported();
  check_size(1, {1}, 1, 2, 1);
  check_size(13, {5, 0, 30}, 3, 10, 2);
  check_size(25, {33}, 1, 64, 3);
  check_size(12, {16, 48}, 2, 34, 2);
  return 0;
}

#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/aligned.h"
#include "cpu/avx512.h"
#include "cpu/dot.h"
#include "threads.h"

namespace livereel::cpu {
namespace {

constexpr std::size_t kRows = 12;  // queries at a time

const BFloat16* token(const Heads& heads, std::size_t i, std::size_t h) {
  return heads.data + static_cast<std::ptrdiff_t>(i) * heads.token_stride +
         static_cast<std::ptrdiff_t>(h) * heads.head_stride;
}

// A 16 x 16 transpose of 32-bit words in four rounds, each exchanging blocks of twice the size.
void transpose(__m512i (&m)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    m[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    m[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    m[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    m[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// The tokens of several pieces, counted through.
class Tokens {
 public:
  Tokens(const std::vector<Heads>& pieces, std::size_t head) : pieces_(pieces), head_(head) {}

  // The next token's numbers, or null behind the last one.
  const BFloat16* next() {
    while (piece_ < pieces_.size() && at_ == pieces_[piece_].tokens) {
      ++piece_;
      at_ = 0;
    }
    return piece_ < pieces_.size() ? token(pieces_[piece_], at_++, head_) : nullptr;
  }

 private:
  const std::vector<Heads>& pieces_;
  std::size_t head_, piece_ = 0, at_ = 0;
};

__m512i load_words(const BFloat16* from, std::size_t count) {
  const __mmask32 mask = count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  return from == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, from);
}

// Keys as the outputs of panels: [room / 32, width / 2, 32, 2].
void pack_keys(Tokens keys, std::size_t room, std::size_t width, BFloat16* to) {
  for (std::size_t first = 0; first < room; first += kLanes) {
    const BFloat16* rows[kLanes];
    for (auto& row : rows) row = keys.next();
    BFloat16* panel = to + first / kPanel * kPanel * width + first % kPanel * 2;
    for (std::size_t k = 0; k < width; k += 2 * kLanes) {
      __m512i words[kLanes];
      for (std::size_t i = 0; i < kLanes; ++i) {
        words[i] = load_words(rows[i] == nullptr ? nullptr : rows[i] + k, width - k);
      }
      transpose(words);
      for (std::size_t i = 0; i < std::min(kLanes, (width - k) / 2); ++i) {
        _mm512_store_si512(panel + (k / 2 + i) * 2 * kPanel, words[i]);
      }
    }
  }
}

// Values as the depth of panels: [width / 32, room / 2, 32, 2].
void pack_values(Tokens values, std::size_t room, std::size_t width, BFloat16* to) {
  alignas(64) std::uint16_t low[32], high[32];
  for (std::uint16_t i = 0; i < 32; ++i) {
    low[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 32);
    high[i] = static_cast<std::uint16_t>(low[i] + 16);
  }
  const __m512i first_half = _mm512_load_si512(low), second_half = _mm512_load_si512(high);
  for (std::size_t i = 0; i < room; i += 2) {
    const BFloat16* rows[2] = {values.next(), nullptr};
    rows[1] = values.next();
    for (std::size_t k = 0; k < width; k += kPanel) {
      const __m512i even = load_words(rows[0] == nullptr ? nullptr : rows[0] + k, width - k);
      const __m512i odd = load_words(rows[1] == nullptr ? nullptr : rows[1] + k, width - k);
      BFloat16* pairs = to + k * room + i * kPanel;
      _mm512_store_si512(pairs, _mm512_permutex2var_epi16(even, first_half, odd));
      _mm512_store_si512(pairs + 2 * kLanes, _mm512_permutex2var_epi16(even, second_half, odd));
    }
  }
}

// 2^(scale * (scores - their maximum)) of one row, into bfloat16; gives the sum. The row's scores
// lie 32 together, kRows * 32 apart.
float exponentials(const float* scores, std::size_t tokens, std::size_t room, float scale,
                   BFloat16* to) {
  const auto at = [&](std::size_t i) { return scores + i / kPanel * kRows * kPanel + i % kPanel; };
  __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < tokens; i += kLanes) {
    const __mmask16 mask = lanes(tokens - i);
    most = _mm512_mask_max_ps(most, mask, most, load(at(i), mask));
  }
  const __m512 scales = _mm512_set1_ps(scale);
  const __m512 shift = _mm512_set1_ps(-scale * _mm512_reduce_max_ps(most));
  __m512 sum = _mm512_setzero_ps();
  for (std::size_t i = 0; i < room; i += kLanes) {
    const __mmask16 mask = lanes(i < tokens ? tokens - i : 0);
    const __m512 e = exp2(_mm512_fmadd_ps(load(at(i), mask), scales, shift));
    sum = _mm512_mask_add_ps(sum, mask, sum, e);
    store(to + i, lanes(kLanes), _mm512_maskz_mov_ps(mask, e));
  }
  return _mm512_reduce_add_ps(sum);
}

struct Sizes {
  std::size_t tokens;  // keys
  std::size_t room;    // keys that panels hold
  std::size_t width;
  float scale;
};

// What a thread works in.
struct Scratch {
  explicit Scratch(const Sizes& sizes)
      : keys(aligned<BFloat16>(sizes.room * sizes.width)),
        values(aligned<BFloat16>(sizes.room * ((sizes.width + kPanel - 1) / kPanel * kPanel))),
        scores(aligned<float>(sizes.room * kRows)),
        weights(aligned<BFloat16>(sizes.room * kRows)) {}

  Aligned<BFloat16> keys, values;
  Aligned<float> scores;
  Aligned<BFloat16> weights;
};

// Up to kRows queries against a head's packed keys and values.
void attend(const Heads& q, std::size_t first, std::size_t rows, std::size_t head,
            const Sizes& sizes, const Scratch& scratch, const Heads& out) {
  constexpr std::ptrdiff_t tap = 0;
  for (std::size_t m = 0; m < sizes.room; m += kPanel) {
    dot_tile(token(q, first, head), q.token_stride, rows, &tap, 1, sizes.width,
             scratch.keys.get() + m * sizes.width, kPanel, scratch.scores.get() + m * kRows);
  }
  float inverse[kRows];
  for (std::size_t r = 0; r < rows; ++r) {
    inverse[r] = 1.0f / exponentials(scratch.scores.get() + r * kPanel, sizes.tokens, sizes.room,
                                     sizes.scale, scratch.weights.get() + r * sizes.room);
  }
  for (std::size_t k = 0; k < sizes.width; k += kPanel) {
    alignas(64) float sums[kRows * kPanel];
    dot_tile(scratch.weights.get(), static_cast<std::ptrdiff_t>(sizes.room), rows, &tap, 1,
             sizes.room, scratch.values.get() + k * sizes.room, kPanel, sums);
    for (std::size_t r = 0; r < rows; ++r) {
      auto* to = const_cast<BFloat16*>(token(out, first + r, head)) + k;
      for (std::size_t i = 0; i < std::min(kPanel, sizes.width - k); i += kLanes) {
        const __m512 v = _mm512_loadu_ps(sums + r * kPanel + i);
        store(to + i, lanes(sizes.width - k - i), _mm512_mul_ps(v, _mm512_set1_ps(inverse[r])));
      }
    }
  }
}

}  // namespace

void attention(const Heads& q, const std::vector<Heads>& keys, const std::vector<Heads>& values,
               std::size_t heads, std::size_t width, const Heads& out, int threads) {
  Sizes sizes{0, 0, width, kLog2e / std::sqrt(static_cast<float>(width))};
  for (const Heads& piece : keys) sizes.tokens += piece.tokens;
  sizes.room = (sizes.tokens + kPanel - 1) / kPanel * kPanel;
  const std::size_t blocks = (q.tokens + kRows - 1) / kRows;
  const std::size_t parts = parts_of(heads * blocks, threads);
  std::vector<Scratch> scratches;
  scratches.reserve(parts);
  for (std::size_t i = 0; i < parts; ++i) scratches.emplace_back(sizes);
  // Blocks of all heads in a row: a thread packs each head that it has blocks of.
  in_parts(heads * blocks, threads, [&](std::size_t part, std::size_t begin, std::size_t end) {
    const Scratch& scratch = scratches[part];
    for (std::size_t block = begin; block < end; ++block) {
      const std::size_t head = block / blocks, first = block % blocks * kRows;
      if (block == begin || first == 0) {
        pack_keys(Tokens(keys, head), sizes.room, width, scratch.keys.get());
        pack_values(Tokens(values, head), sizes.room, width, scratch.values.get());
      }
      attend(q, first, std::min(kRows, q.tokens - first), head, sizes, scratch, out);
    }
  });
}

}  // namespace livereel::cpu

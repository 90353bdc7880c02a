// Padding and convolution against sums in double precision.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../check.h"
#include "cpu/conv.h"
#include "halves.h"

using namespace livereel;

namespace {

double silu(double x) { return x / (1.0 + std::exp(-x)); }

struct Sizes {
  std::size_t frames, height, width, channels, history, border;
};

// Past frames, then normed ones, within a border; the newest go to `kept`.
void check_pad(const Sizes& s, bool norm, bool started) {
  const std::size_t line = s.width * s.channels, frame = s.height * line;
  auto x = halves(1, s.frames * frame);
  const auto past = halves(2, s.history * frame);
  const auto gain = floats(3, s.channels);
  const cpu::Frames from{x.data(), s.frames, s.height, s.width, s.channels};
  const std::size_t height = s.height + 2 * s.border, width = s.width + 2 * s.border;
  auto out = poison((s.history + s.frames) * height * width * s.channels);
  auto kept = poison(s.history * frame);
  cpu::pad(from, started ? past.data() : nullptr, norm ? gain.data() : nullptr,
           {out.data(), s.history + s.frames, height, width, s.channels}, kept.data(), 2);
  const auto wanted = [&](std::size_t t, std::size_t h, std::size_t w, std::size_t c) {
    if (h < s.border || h >= s.border + s.height || w < s.border || w >= s.border + s.width) {
      return 0.0;
    }
    const std::size_t at = (h - s.border) * line + (w - s.border) * s.channels;
    if (t < s.history) return started ? value(past[t * frame + at + c]) : 0.0;
    const BFloat16* pixel = x.data() + (t - s.history) * frame + at;
    if (!norm) return value(pixel[c]);
    double sum = 0.0;
    for (std::size_t i = 0; i < s.channels; ++i) sum += value(pixel[i]) * value(pixel[i]);
    return silu(value(pixel[c]) / std::max(std::sqrt(sum), 1e-12) * gain[c]);
  };
  std::size_t i = 0, k = 0;
  for (std::size_t t = 0; t < s.history + s.frames; ++t) {
    for (std::size_t h = 0; h < height; ++h) {
      for (std::size_t w = 0; w < width; ++w) {
        for (std::size_t c = 0; c < s.channels; ++c, ++i) {
          CHECK(close(out[i], wanted(t, h, w, c)));
          const bool inside = h - s.border < s.height && w - s.border < s.width;
          if (t >= s.frames && inside) {
            CHECK(kept[k].bits == out[i].bits);
            ++k;
          }
        }
      }
    }
  }
  CHECK(k == kept.size());
}

// Kernel 2 x 3 x 3 from the second row on, into every other column of a wider picture.
void check_convolve(std::size_t depth, std::size_t outputs) {
  const std::size_t frames = 2, height = 3, width = 27;
  const cpu::Frames x_sizes{nullptr, frames + 1, height + 3, width + 2, depth};
  auto x = halves(4, x_sizes.frames * x_sizes.height * x_sizes.width * depth);
  const cpu::Frames from{x.data(), x_sizes.frames, x_sizes.height, x_sizes.width, depth};
  const auto w = halves(5, outputs * depth * 18);
  const auto bias = floats(6, outputs);
  std::vector<cpu::Tap> taps;
  for (std::ptrdiff_t t = 0; t < 2; ++t) {
    for (std::ptrdiff_t h = 1; h < 4; ++h) {
      for (std::ptrdiff_t v = 0; v < 3; ++v) taps.push_back({t, h, v});
    }
  }
  const auto step = static_cast<std::ptrdiff_t>(depth * 18);
  const cpu::PackedMatrix packed(w.data(), outputs, 18, depth, step, 1, 18);
  const std::size_t pixel = 2 * outputs, row = width * pixel;
  const auto residual = halves(7, frames * height * row);
  auto out = poison(residual.size());
  const cpu::Conv conv{&packed, taps.data(), bias.data(), frames, height, width};
  const auto signed_of = [](std::size_t n) { return static_cast<std::ptrdiff_t>(n); };
  cpu::convolve(from, conv, residual.data(),
                {out.data(), signed_of(height * row), signed_of(row), signed_of(pixel)}, 2);
  const double scale = std::sqrt(18.0 * static_cast<double>(depth));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t n = i % pixel, at = i / pixel;
    if (n >= outputs) {
      CHECK(out[i].bits == 0x7fc0);
      continue;
    }
    const std::size_t t = at / width / height, h = at / width % height, v = at % width;
    double sum = static_cast<double>(bias[n]) + value(residual[i]);
    for (std::size_t tap = 0; tap < taps.size(); ++tap) {
      const std::size_t ft = t + static_cast<std::size_t>(taps[tap].frame);
      const std::size_t fh = h + static_cast<std::size_t>(taps[tap].row);
      const std::size_t fw = v + static_cast<std::size_t>(taps[tap].column);
      for (std::size_t k = 0; k < depth; ++k) {
        const double a = value(x[((ft * from.height + fh) * from.width + fw) * depth + k]);
        sum += a * value(w[(n * depth + k) * 18 + tap]);
      }
    }
    CHECK(close(out[i], sum, scale));
  }
}

}  // namespace

int main() {
  skip_if_unsupported();
  check_pad({2, 3, 17, 5, 2, 1}, true, true);
  check_pad({1, 2, 4, 33, 2, 1}, true, false);
  check_pad({3, 2, 3, 16, 2, 0}, false, true);
  check_pad({0, 2, 3, 4, 2, 0}, false, false);
  check_pad({1, 4, 16, 2, 0, 1}, false, false);
  check_convolve(16, 16);
  check_convolve(2, 5);
  check_convolve(34, 48);
  return 0;
}

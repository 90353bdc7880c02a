// RMS norm and SiLU against the formula in double precision.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "rms_norm_silu.h"

namespace {

float from_bits(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

std::uint16_t to_bits(float value) {
  std::uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  return static_cast<std::uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

double formula(const std::vector<float>& row, std::size_t c, float gain) {
  double sum = 0.0;
  for (const float v : row) sum += static_cast<double>(v) * v;
  const double norm = std::max(std::sqrt(sum), 1e-12);
  const double v = row[c] / norm * gain;
  return v / (1.0 + std::exp(-v));
}

void check_size(std::size_t rows, std::size_t channels) {
  std::vector<float> x(rows * channels), y(x.size(), NAN), gain(channels);
  std::vector<livereel::BFloat16> half(x.size()), out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    half[i].bits = to_bits(std::sin(static_cast<float>(i * i % 1009)) * 3.0f);
    x[i] = from_bits(half[i].bits);
  }
  for (std::size_t c = 0; c < channels; ++c) gain[c] = 40.0f * std::cos(static_cast<float>(c));
  livereel::rms_norm_silu(x.data(), gain.data(), y.data(), rows, channels);
  livereel::rms_norm_silu(half.data(), gain.data(), out.data(), rows, channels);
  for (std::size_t r = 0; r < rows; ++r) {
    const std::vector<float> row(x.begin() + static_cast<std::ptrdiff_t>(r * channels),
                                 x.begin() + static_cast<std::ptrdiff_t>((r + 1) * channels));
    for (std::size_t c = 0; c < channels; ++c) {
      const double wanted = formula(row, c, gain[c]);
      const double error = std::abs(y[r * channels + c] - wanted);
      CHECK(error <= 1e-5 * std::abs(wanted) + 1e-6);
      const double half_error = std::abs(from_bits(out[r * channels + c].bits) - wanted);
      CHECK(half_error <= 0.0041 * std::abs(wanted) + 1e-6);
    }
  }
}

}  // namespace

int main() {
  for (const std::size_t channels : {1, 7, 16, 32, 33, 96, 128}) check_size(5, channels);
  check_size(0, 8);

  // A row of zeros stays zero; a NaN stays one; in place works.
  const std::vector<float> gain(4, 2.0f);
  std::vector<float> row(4, 0.0f);
  livereel::rms_norm_silu(row.data(), gain.data(), row.data(), 1, 4);
  for (const float v : row) CHECK(v == 0.0f);
  std::vector<livereel::BFloat16> broken(4, livereel::BFloat16{0x7fc0});
  livereel::rms_norm_silu(broken.data(), gain.data(), broken.data(), 1, 4);
  for (const auto v : broken) CHECK(std::isnan(from_bits(v.bits)));
  return 0;
}

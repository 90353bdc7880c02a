// Norms and rotations against the formulas in double precision.
#include <cmath>
#include <vector>

#include "../check.h"
#include "cpu/norm.h"
#include "halves.h"

using namespace livereel;

namespace {

void check_layer_norm(std::size_t rows, std::size_t width, std::size_t gain_rows) {
  const auto x = halves(1, rows * width);
  const auto scale = floats(2, rows / gain_rows * width), shift = floats(3, scale.size());
  auto y = poison(x.size());
  cpu::layer_norm(x.data(), rows, width, scale.data(), shift.data(), gain_rows, 1.0f, 1e-3f,
                  y.data(), 2);
  for (std::size_t r = 0; r < rows; ++r) {
    double mean = 0.0, variance = 0.0;
    for (std::size_t i = 0; i < width; ++i) mean += value(x[r * width + i]);
    mean /= static_cast<double>(width);
    for (std::size_t i = 0; i < width; ++i) {
      variance += std::pow(value(x[r * width + i]) - mean, 2) / static_cast<double>(width);
    }
    for (std::size_t i = 0; i < width; ++i) {
      const double normed = (value(x[r * width + i]) - mean) / std::sqrt(variance + 1e-3);
      const std::size_t g = r / gain_rows * width + i;
      CHECK(close(y[r * width + i], normed * (1.0 + scale[g]) + shift[g], 4.0));
    }
  }
}

// Queries and keys side by side in rows of three widths, heads of `head`.
void check_rotation(std::size_t rows, std::size_t heads, std::size_t head, std::size_t positions) {
  const std::size_t width = heads * head;
  const auto x = halves(4, rows * 3 * width);
  const auto gain = floats(5, width), cos = floats(6, positions * head);
  const auto sin = floats(7, positions * head);
  const cpu::Rotation rotation{cos.data(), sin.data(), positions, head};
  const auto stride = static_cast<std::ptrdiff_t>(3 * width);
  auto rotated = poison(rows * width), normed = rotated, bare = rotated;
  cpu::rms_norm_rotate(
      {
          {x.data(), stride, gain.data(), nullptr, rotated.data()},
          {x.data() + width, stride, gain.data(), normed.data(), nullptr},
      },
      rows, width, 1e-3f, rotation, 2);
  cpu::rms_norm_rotate({{x.data(), stride, nullptr, nullptr, bare.data()}}, rows, width, 0.0f,
                       rotation, 1);
  const auto norm = [&](std::size_t r, std::size_t first) {
    std::vector<double> row(width);
    double mean = 0.0;
    for (std::size_t i = 0; i < width; ++i) {
      row[i] = value(x[r * 3 * width + first + i]);
      mean += row[i] * row[i] / static_cast<double>(width);
    }
    for (std::size_t i = 0; i < width; ++i) row[i] *= gain[i] / std::sqrt(mean + 1e-3);
    return row;
  };
  for (std::size_t r = 0; r < rows; ++r) {
    const std::vector<double> q = norm(r, 0), k = norm(r, width);
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t at = r % positions * head + i % head;
      CHECK(close(normed[r * width + i], k[i], 4.0));
      CHECK(close(rotated[r * width + i], q[i] * cos[at] + q[i ^ 1] * sin[at], 4.0));
      const double plain = value(x[r * 3 * width + i]), other = value(x[r * 3 * width + (i ^ 1)]);
      CHECK(close(bare[r * width + i], plain * cos[at] + other * sin[at], 2.0));
    }
  }
}

}  // namespace

int main() {
  skip_if_unsupported();
  check_layer_norm(6, 2, 1);
  check_layer_norm(6, 33, 3);
  check_layer_norm(4, 64, 4);
  check_rotation(1, 1, 2, 1);
  check_rotation(6, 3, 10, 3);
  check_rotation(5, 2, 48, 5);
  return 0;
}

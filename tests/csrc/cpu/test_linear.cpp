// Packed products and what follows them, against sums in double precision.
#include <cmath>
#include <vector>

#include "../check.h"
#include "cpu/linear.h"
#include "halves.h"

using namespace livereel;

namespace {

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

void check_size(std::size_t rows, std::size_t depth, std::size_t outputs, int threads) {
  const auto x = halves(1, rows * depth), w = halves(2, outputs * depth);
  const auto residual = halves(3, rows * outputs);
  const auto bias = floats(4, outputs), gate = floats(5, outputs * rows);
  const auto step = static_cast<std::ptrdiff_t>(depth);
  const cpu::PackedMatrix packed(w.data(), outputs, 1, depth, step, 1, 1);
  auto plain = poison(rows * outputs), bent = plain, gated = plain;
  cpu::linear(x.data(), rows, packed, cpu::Epilogue(), plain.data(), threads);
  cpu::Epilogue epilogue;
  epilogue.bias = bias.data();
  epilogue.gelu = true;
  cpu::linear(x.data(), rows, packed, epilogue, bent.data(), threads);
  epilogue.gelu = false;
  epilogue.residual = residual.data();
  epilogue.gate = gate.data();
  cpu::linear(x.data(), rows, packed, epilogue, gated.data(), threads);
  auto added = residual;  // in place, and without a gate
  epilogue.residual = added.data();
  epilogue.gate = nullptr;
  cpu::linear(x.data(), rows, packed, epilogue, added.data(), threads);
  const double scale = std::sqrt(static_cast<double>(depth));
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t n = 0; n < outputs; ++n) {
      const std::size_t i = r * outputs + n;
      double sum = 0.0;
      for (std::size_t k = 0; k < depth; ++k) {
        sum += value(x[r * depth + k]) * value(w[n * depth + k]);
      }
      CHECK(close(plain[i], sum, scale));
      sum += static_cast<double>(bias[n]);
      CHECK(close(bent[i], gelu(sum), scale));
      CHECK(close(gated[i], value(residual[i]) + static_cast<double>(gate[i]) * sum, scale));
      CHECK(close(added[i], value(residual[i]) + sum, scale));
    }
  }
}

}  // namespace

int main() {
  skip_if_unsupported();
  check_size(1, 2, 1, 1);
  check_size(5, 6, 16, 2);
  check_size(25, 16, 7, 2);   // narrow panels with rows 16 apart
  check_size(30, 20, 13, 1);  // and otherwise
  check_size(13, 64, 33, 3);
  check_size(27, 34, 80, 2);

  constexpr std::size_t kRows = 29, kOutputs = 48;
  // A row's sums do not depend on its neighbors, nor on the number of threads.
  const auto x = halves(6, kRows * 32), w = halves(7, kOutputs * 32);
  const cpu::PackedMatrix packed(w.data(), kOutputs, 1, 32, 32, 1, 1);
  auto all = poison(kRows * kOutputs), one = poison(kOutputs);
  cpu::linear(x.data(), kRows, packed, cpu::Epilogue(), all.data(), 2);
  for (std::size_t r = 0; r < kRows; ++r) {
    cpu::linear(x.data() + r * 32, 1, packed, cpu::Epilogue(), one.data(), 1);
    for (std::size_t n = 0; n < kOutputs; ++n) {
      CHECK(one[n].bits == all[r * kOutputs + n].bits);
    };
  }
  return 0;
}

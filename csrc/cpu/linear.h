// A linear layer over bfloat16 rows, with what usually follows it done before the sums are rounded.
#pragma once

#include <cstddef>

#include "bfloat16.h"
#include "cpu/dot.h"

namespace livereel::cpu {

// What becomes of a row's sums s: v = s + bias; v = gelu(v) (its tanh approximation); and where
// there is a residual, v = residual + gate * v, each `gate_rows` rows sharing one row of `gate`.
// Pointers may be null; `residual` has the output's shape.
struct Epilogue {
  const float* bias = nullptr;
  bool gelu = false;
  const BFloat16* residual = nullptr;
  const float* gate = nullptr;
  std::size_t gate_rows = 1;
};

// y[r, n] from dense x[rows, depth] and one-tap weights; y is dense [rows, outputs].
void linear(const BFloat16* x, std::size_t rows, const PackedMatrix& weights,
            const Epilogue& epilogue, BFloat16* y, int threads);

}  // namespace livereel::cpu

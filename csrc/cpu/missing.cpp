// Stands for the kernels of this folder where they cannot be built: for other processors than
// x86-64 and by other compilers than GCC and Clang. `supported` keeps callers away from the rest.
#include <stdexcept>

#include "cpu/attention.h"
#include "cpu/conv.h"
#include "cpu/dot.h"
#include "cpu/linear.h"
#include "cpu/norm.h"
#include "cpu/pixels.h"
#include "cpu/supported.h"

namespace livereel::cpu {
namespace {

[[noreturn]] void missing() {
  throw std::runtime_error("this build of LiveReel has no AVX512-BF16 kernels");
}

}  // namespace

bool supported() { return false; }

// NOLINTBEGIN(readability-named-parameter)

PackedMatrix::PackedMatrix(const BFloat16*, std::size_t outputs, std::size_t taps,
                           std::size_t depth, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t)
    : outputs_(outputs), taps_(taps), depth_(depth) {
  missing();
}

void linear(const BFloat16*, std::size_t, const PackedMatrix&, const Epilogue&, BFloat16*, int) {
  missing();
}

void layer_norm(const BFloat16*, std::size_t, std::size_t, const float*, const float*, std::size_t,
                float, float, BFloat16*, int) {
  missing();
}

void rms_norm_rotate(const std::vector<NormRotate>&, std::size_t, std::size_t, float,
                     const Rotation&, int) {
  missing();
}

void attention(const Heads&, const std::vector<Heads>&, const std::vector<Heads>&, std::size_t,
               std::size_t, const Heads&, int) {
  missing();
}

void pad(const Frames&, const BFloat16*, const float*, const Frames&, BFloat16*, int) { missing(); }

void convolve(const Frames&, const Conv&, const BFloat16*, const Pixels&, int) { missing(); }

void unfold(const BFloat16*, std::size_t, std::size_t, std::size_t, BFloat16*, int) { missing(); }

void to_bytes(const BFloat16*, std::size_t, std::uint8_t*, int) { missing(); }

// NOLINTEND(readability-named-parameter)

}  // namespace livereel::cpu

// The safetensors format: eight bytes of length, a JSON header of that length, the tensors' bytes.
// Nothing is copied, and nothing in a file is believed before it was checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace livereel {

// One tensor: its dtype as the format names it ("F32"), shape, and bytes in row-major order, which
// may lie at any address: they are to be copied before they are numbers.
struct TensorView {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

struct Safetensors {
  std::map<std::string, TensorView, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;

  // Throws Error(kPackage) naming it when there is no tensor `name`.
  [[nodiscard]] const TensorView& at(std::string_view name) const;
};

inline constexpr std::size_t kMaxHeader = std::size_t{16} << 20;

// Reads a file's bytes, to which the views point. Throws Error(kPackage) unless every tensor has a
// known dtype and lies within the file, just as long as its shape says, and none lies on another.
Safetensors read_safetensors(std::span<const std::byte> bytes);

// The bytes of a file with these tensors; what the views point to is copied.
std::vector<std::byte> write_safetensors(const Safetensors& content);

}  // namespace livereel

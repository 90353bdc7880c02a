// A file mapped for reading, so that what is never touched costs no memory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace livereel {

class MappedFile {
 public:
  // Throws Error(kFile) for what cannot be read, is no plain file or holds nothing.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// What the C library says of an error number.
std::string error_text(int number);

}  // namespace livereel

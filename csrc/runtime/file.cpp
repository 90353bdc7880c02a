#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "livereel/error.h"

namespace livereel {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw Error(Status::kFile, path.string() + " cannot be read: " + why);
}

}  // namespace

std::string error_text(int number) { return std::generic_category().message(number); }

MappedFile::MappedFile(const std::filesystem::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) refuse(path, error_text(errno));
  struct stat found{};
  const bool plain = fstat(file, &found) == 0 && S_ISREG(found.st_mode) && found.st_size > 0;
  const auto size = plain ? static_cast<std::size_t>(found.st_size) : 0;
  const void* const data =
      plain ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  const int number = errno;
  close(file);
  if (!plain) refuse(path, "it is no file, or an empty one");
  if (data == MAP_FAILED) refuse(path, error_text(number));
  bytes_ = {static_cast<const std::byte*>(data), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace livereel

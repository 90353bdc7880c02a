#include "y4m.h"

#include <cerrno>
#include <cmath>

#include "file.h"
#include "livereel/error.h"

namespace livereel {

void Y4mWriter::Closer::operator()(std::FILE* file) const noexcept {
  if (file != stdout) std::fclose(file);  // NOLINT(cppcoreguidelines-owning-memory)
}

Y4mWriter::Y4mWriter(const std::string& path, std::int64_t width, std::int64_t height, double fps)
    : path_(path),
      file_(path == "-" ? stdout : std::fopen(path.c_str(), "wbe")),
      pixels_(static_cast<std::size_t>(width * height)),
      planes_(3 * pixels_) {
  if (!file_) fail();
  const std::string header = "YUV4MPEG2 W" + std::to_string(width) + " H" + std::to_string(height) +
                             " F" + std::to_string(std::llround(fps * 1000)) +
                             ":1000 Ip A1:1 C444\n";
  put(header.data(), header.size());
}

void Y4mWriter::write(const std::uint8_t* rgb) {
  // BT.601 in 16 bits of fraction.
  for (std::size_t i = 0; i < pixels_; ++i) {
    const int r = rgb[3 * i], g = rgb[(3 * i) + 1], b = rgb[(3 * i) + 2];
    const auto plane = [&](std::size_t at, int sum, int offset) {
      planes_[(at * pixels_) + i] = static_cast<std::uint8_t>((sum + (offset << 16) + 32768) >> 16);
    };
    plane(0, (16829 * r) + (33039 * g) + (6416 * b), 16);
    plane(1, (-9714 * r) - (19070 * g) + (28784 * b), 128);
    plane(2, (28784 * r) - (24103 * g) - (4681 * b), 128);
  }
  put("FRAME\n", 6);
  put(planes_.data(), planes_.size());
}

void Y4mWriter::close() {
  if (std::fflush(file_.get()) != 0) fail();
}

void Y4mWriter::fail() const {
  throw Error(Status::kFile, path_ + " cannot be written: " + error_text(errno));
}

void Y4mWriter::put(const void* data, std::size_t bytes) {
  if (std::fwrite(data, 1, bytes, file_.get()) != bytes) fail();
}

}  // namespace livereel

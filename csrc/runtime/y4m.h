// YUV4MPEG2, the uncompressed video that ffmpeg, mpv and VLC read from files and pipes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace livereel {

// Writes 4:4:4 in BT.601's studio range. "-" is the standard output.
class Y4mWriter {
 public:
  // Throws Error(kFile), as all functions do, for a place that cannot be written.
  Y4mWriter(const std::string& path, std::int64_t width, std::int64_t height, double fps);

  // One frame, RGB [height, width, 3].
  void write(const std::uint8_t* rgb);

  // Flushes; without it a full disk may go unseen.
  void close();

 private:
  struct Closer {
    void operator()(std::FILE* file) const noexcept;
  };

  [[noreturn]] void fail() const;
  void put(const void* data, std::size_t bytes);

  std::string path_;
  std::unique_ptr<std::FILE, Closer> file_;
  std::size_t pixels_;
  std::vector<std::uint8_t> planes_;
};

}  // namespace livereel

// What the y4m writer writes, and what it says when it cannot.
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "../check.h"
#include "package_files.h"
#include "refused.h"
#include "y4m.h"

namespace {

using livereel::refused;
using livereel::Status;
using livereel::Y4mWriter;

}  // namespace

int main() {
  const livereel::TemporaryFolder folder;
  const std::string path = folder.path() / "out.y4m";
  const std::vector<std::uint8_t> pixels = {0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255};
  {
    Y4mWriter writer(path, 2, 2, 16.0);
    writer.write(pixels.data());
    writer.close();
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::string header = "YUV4MPEG2 W2 H2 F16000:1000 Ip A1:1 C444\nFRAME\n";
  CHECK(text.starts_with(header));
  // BT.601: black, white, red and blue.
  const std::vector<std::uint8_t> wanted = {16, 235, 81, 41, 128, 128, 90, 240, 128, 128, 240, 110};
  CHECK(text.size() == header.size() + wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    CHECK(static_cast<std::uint8_t>(text[header.size() + i]) == wanted[i]);
  }

  const auto missing = (folder.path() / "no" / "out.y4m").string();
  CHECK(refused(Status::kFile, [&] { const Y4mWriter writer(missing, 2, 2, 16.0); }));
  CHECK(refused(Status::kFile, [&] {
    Y4mWriter writer("/dev/full", 2, 2, 16.0);
    writer.write(pixels.data());
    writer.close();
  }));
  return 0;
}

// Streams a package and compares every byte with what Python's runner made of it: CHUNKS chunks,
// the prompt changed in the middle, the second half once more from a snapshot. Where the model
// follows control, the object is led and let go; and the same graphs have a goal's channels in its
// place.
//
//   test_stream FOLDER [CHUNKS], where FOLDER holds package/, first.safetensors, second.safetensors
//   and frames.rgb
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "../check.h"
#include "file.h"
#include "livereel/stream.h"
#include "manifest.h"
#include "package_files.h"

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kChunks = 50;  // unless told
constexpr std::uint64_t kSeed = 7;
constexpr double kOpen = std::numeric_limits<double>::quiet_NaN();

// What is told of where the object shall be when a chunk has left; as tests/engine/runners has it.
const std::map<std::int64_t, std::vector<livereel::Position>>& tracks() {
  static const std::map<std::int64_t, std::vector<livereel::Position>> told = {
      {4, {{0.25, 0.7}}},
      {6, {{0.9, 0.1}}},
      {9, {{0.9, 0.2}, {0.95, 0.3}, {kOpen, kOpen}, {0.05, 0.4}, {0.1, 0.5}}},
      {39, {}},
  };
  return told;
}

std::string manifest_of(const fs::path& folder) {
  const livereel::MappedFile manifest(folder / "package" / "manifest.json");
  const auto bytes = manifest.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool follows_control(const fs::path& folder) {
  return livereel::read_manifest(manifest_of(folder)).stream.control_channels > 0;
}

// Streams up to the last chunk and compares; gives a snapshot from before the prompt's change.
std::vector<std::byte> stream_all(livereel::Stream& stream, const livereel::Embeds& second,
                                  std::span<const std::byte> wanted, std::int64_t chunks,
                                  bool led) {
  std::vector<std::byte> snapshot;
  std::int64_t index = 0;
  stream.run([&](const livereel::Chunk& chunk) {
    const auto size = static_cast<std::size_t>(chunk.height * chunk.width * 3);
    const std::size_t from = static_cast<std::size_t>(chunk.pts) * size;
    CHECK(chunk.frames.size() == static_cast<std::size_t>(chunk.count) * size);
    CHECK(from + chunk.frames.size() <= wanted.size());
    if (std::memcmp(chunk.frames.data(), wanted.data() + from, chunk.frames.size()) != 0) {
      std::fprintf(stderr, "chunk %lld differs\n", static_cast<long long>(chunk.index));
      std::exit(1);
    }
    index = chunk.index;
    if (const auto track = tracks().find(index); led && track != tracks().end()) {
      stream.control(track->second);
    }
    if (index == (chunks / 2) - 1) {
      snapshot = stream.snapshot();
      stream.update(second);
    }
    return index < chunks - 1;
  });
  CHECK(index == chunks - 1);
  return snapshot;
}

// Zeros in place of control's: the frames of an object that is not led.
void test_goal(const fs::path& folder) {
  const livereel::TemporaryFolder copy;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder / "package")) {
    fs::create_symlink(fs::canonical(entry.path()), copy.path() / entry.path().filename());
  }
  fs::remove(copy.path() / "manifest.json");
  livereel::write_file(
      copy.path() / "manifest.json",
      livereel::changed(manifest_of(folder), "\"control_channels\"", "\"goal_channels\""));
  const livereel::MappedFile frames(folder / "frames.rgb");
  livereel::Options options;
  options.seed = kSeed;
  livereel::Stream stream(copy.path(), livereel::read_embeds(folder / "first.safetensors"),
                          options);
  std::size_t at = 0;
  for (int i = 0; i < 2; ++i) {
    const livereel::Chunk chunk = stream.next();
    CHECK(std::memcmp(chunk.frames.data(), frames.bytes().data() + at, chunk.frames.size()) == 0);
    at += chunk.frames.size();
  }
  static_cast<void>(livereel::Stream(copy.path(), stream.snapshot()));
}

void test(const fs::path& folder, std::int64_t chunks) {
  const livereel::MappedFile frames(folder / "frames.rgb");
  const livereel::Embeds first = livereel::read_embeds(folder / "first.safetensors");
  const livereel::Embeds second = livereel::read_embeds(folder / "second.safetensors");
  livereel::Options options;
  options.seed = kSeed;
  const bool led = follows_control(folder);
  std::vector<std::byte> snapshot;
  {
    livereel::Stream stream(folder / "package", first, options);
    snapshot = stream_all(stream, second, frames.bytes(), chunks, led);
  }
  livereel::Stream restored(folder / "package", snapshot);
  restored.update(second);
  stream_all(restored, second, frames.bytes(), chunks, led);
}

}  // namespace

// NOLINTNEXTLINE(misc-const-correctness)
int main(int count, char** values) {
  CHECK(count == 2 || count == 3);
  try {
    test(values[1], count == 3 ? std::stoll(values[2]) : kChunks);
    if (follows_control(values[1])) test_goal(values[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

// LiveReel's C++ interface: endless video from a package that `livereel export --format aoti`
// wrote, without Python. On the processor frames are bitwise those of the Python runner on the same
// package, machine and number of threads. A package compiled for a GPU runs on the process's first
// one; that has never been run yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "livereel/error.h"
#include "livereel/livereel.h"

namespace livereel {

// A prompt's embedding, row-major [tokens, width].
struct Embeds {
  std::vector<float> values;
  std::int64_t tokens = 0;
  std::int64_t width = 0;
};

// Reads what `livereel embed` wrote. Throws Error(kFile) or Error(kPackage).
LIVEREEL_API Embeds read_embeds(const std::filesystem::path& file);

// `steps` is how many of the model's passes a chunk is given, all if 0. Graphs are unpacked to a
// folder in `unpack_to` (by default the system's for temporary files), gone when the stream is
// open.
struct Options {
  std::uint64_t seed = 0;
  std::int64_t steps = 0;
  std::filesystem::path unpack_to;
};

using Position = livereel_position;

// RGB frames [count, height, width, 3] that leave together; `index` counts chunks, `pts` is the
// number of the first frame.
struct Chunk {
  std::vector<std::uint8_t> frames;
  std::int64_t count = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t index = 0;
  std::int64_t pts = 0;
};

// A live stream. All functions throw Error. `update` and `control` may be called from any thread
// and take hold at the next chunk's edge; the others wait for the chunk in the making.
class LIVEREEL_API Stream {
 public:
  // Opens and checks a package, loads its graphs and computes the prompt's keys and values; no
  // frame is made yet.
  Stream(const std::filesystem::path& package, const Embeds& prompt, const Options& options = {});

  // Goes on, bitwise, where `snapshot` was taken; only `unpack_to` of the options is heeded.
  Stream(const std::filesystem::path& package, std::span<const std::byte> snapshot,
         const Options& options = {});

  ~Stream();
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Makes the next chunk. One that fails leaves the stream as it was.
  Chunk next();

  // Hands chunks to `show` until it gives false.
  void run(const std::function<bool(const Chunk&)>& show);

  // Changes the prompt from the next chunk on.
  void update(const Embeds& prompt);

  // Leads the object from the next chunk on: a position for each frame, the last of which holds on;
  // to a single one within a chunk; none lets go. Throws Error(kArgument) for a model that follows
  // no control.
  void control(std::span<const Position> track);

  // All that the next chunk depends on, but for what `update` and `control` have left for it.
  [[nodiscard]] std::vector<std::byte> snapshot() const;

  [[nodiscard]] double fps() const noexcept;
  [[nodiscard]] std::int64_t width() const noexcept;
  [[nodiscard]] std::int64_t height() const noexcept;

 private:
  class Impl;

  std::unique_ptr<Impl> impl_;
};

}  // namespace livereel

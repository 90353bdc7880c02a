// The ring's arithmetic against a plain list: for each slot, the frame written there last.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "window.h"

namespace {

using livereel::Window;
using Frames = std::vector<std::int64_t>;

struct Lengths {
  std::int64_t sinks, window, chunk, anchors, every;

  [[nodiscard]] Window make() const { return {sinks, window, chunk, anchors, every}; }

  // What a chunk at `first` sees, from the definition, looking at the frames from `from` on.
  [[nodiscard]] Frames seen(std::int64_t first, std::int64_t from) const {
    Frames old;
    for (std::int64_t f = from; f < first - (window - chunk); ++f) {
      if (f >= sinks && f % every == 0) old.push_back(f);
    }
    Frames frames;
    for (std::int64_t f = 0; f < std::min(sinks, first); ++f) frames.push_back(f);
    const auto kept = std::min(anchors, static_cast<std::int64_t>(old.size()));
    frames.insert(frames.end(), old.end() - kept, old.end());
    for (std::int64_t f = std::max({sinks, first - (window - chunk), from}); f < first; ++f) {
      frames.push_back(f);
    }
    return frames;
  }
};

// Streams chunks of all sizes in turn from frame `from` on; `known` is how far back the ring is
// taken to be filled there.
void check_stream(const Lengths& lengths, std::int64_t from, std::int64_t known) {
  const Window window = lengths.make();
  Frames slots(static_cast<std::size_t>(window.slots()), -1);
  const auto write = [&](std::int64_t frame) {
    const std::int64_t slot = window.slot(frame);
    CHECK(slot >= 0 && slot < window.slots());
    slots[static_cast<std::size_t>(slot)] = frame;
  };
  for (std::int64_t f = 0; f < std::min(lengths.sinks, from); ++f) write(f);
  for (std::int64_t f = known; f < from; ++f) write(f);
  std::int64_t size = 1;
  for (std::int64_t first = from; first < from + 6 * lengths.window; first += size) {
    size = size % lengths.chunk + 1;
    const Frames frames = window.visible(first);
    CHECK(frames == lengths.seen(first, known));
    for (std::int64_t i = 0; i < size; ++i) write(first + i);
    // What the chunk has seen is still there after it was written.
    for (const std::int64_t frame : frames) {
      CHECK(slots[static_cast<std::size_t>(window.slot(frame))] == frame);
    }
  }
}

template <typename Function>
bool refused(Function function) {
  try {
    function();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  for (const std::int64_t sinks : {0, 1, 3, 8}) {
    for (const std::int64_t window : {1, 2, 5, 9}) {
      for (std::int64_t chunk = 1; chunk <= window; chunk += 2) {
        for (const std::int64_t anchors : {0, 1, 4}) {
          for (const std::int64_t every : {1, 2, 3, 8, 20}) {
            const Lengths lengths{sinks, window, chunk, anchors, every};
            check_stream(lengths, 0, 0);
            for (const std::int64_t far : {std::int64_t{1} << 31, std::int64_t{1} << 61}) {
              check_stream(lengths, far - 7, far - 7 - window - every * (anchors + 1));
            }
            const std::int64_t least = sinks + window + anchors;
            const std::int64_t slots = lengths.make().slots();
            CHECK(slots == least || (anchors > 0 && slots == least + 1));
          }
        }
      }
    }
  }

  const Window window(1, 4, 2, 2, 3);
  CHECK((window.anchors_before(10) == Frames{6, 9}));
  CHECK((window.visible(12) == Frames{0, 6, 9, 10, 11}));
  CHECK(!refused([&] { return window.slot(Window::kMaxFrame - 1); }));
  CHECK(refused([&] { return window.slot(Window::kMaxFrame); }));
  CHECK(refused([&] { return window.slot(-1); }));
  CHECK(refused([&] { return window.visible(-1); }));
  CHECK(refused([] { return Window(0, 3, 4, 0, 1); }));
  CHECK(refused([] { return Window(0, 3, 0, 0, 1); }));
  CHECK(refused([] { return Window(-1, 3, 3, 0, 1); }));
  CHECK(refused([] { return Window(0, 3, 3, 1, 0); }));
  CHECK(refused([] { return Window(0, std::int64_t{1} << 40, 3, 0, 1); }));
  return 0;
}

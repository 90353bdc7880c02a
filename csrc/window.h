// The KV ring's arithmetic: which latent frames of a stream a chunk sees, and in which slot each
// one lies. No memory is held here and nothing depends on torch.
//
// Frames are numbered from 0 at the stream's start. A chunk sees three runs of frames before it,
// the oldest first:
//
//   sinks    the stream's first `sinks` frames
//   anchors  the newest `anchors` among the multiples of `anchor_every` older than the window
//   window   the newest `window` frames, the chunk itself included; as chunks have at most `chunk`
//            frames, that is the window - chunk before the chunk's first
//
// Its keys are rotated by their place in this list, the oldest at position 0, and the chunk's own
// follow on: positions are relative to what is seen, so that a stream never runs out of them.
//
// A frame has one slot from its writing until it is written over; nothing is ever moved. The slots
// are three rings: the sinks' own, which is never written over, one of the anchors, and one of all
// other frames. Any `window` frames in a row hold at least floor(window / anchor_every) anchors and
// at most ceil(window / anchor_every), so the rings' lengths are
//
//   sinks,  window - floor(window / anchor_every),  anchors + ceil(window / anchor_every)
//
// (sinks, window and 0 without anchors). With room for a whole window, writing a chunk leaves in
// place all that the chunk has seen: a pass that was cut short can be run again.
#pragma once

#include <cstdint>
#include <vector>

namespace livereel {

class Window {
 public:
  // Frame numbers are below this, so that sums with lengths cannot overflow.
  static constexpr std::int64_t kMaxFrame = std::int64_t{1} << 62;
  // The largest of the lengths below.
  static constexpr std::int64_t kMaxLength = std::int64_t{1} << 20;

  // Throws std::invalid_argument unless 1 <= chunk <= window, 0 <= sinks, 0 <= anchors and
  // 1 <= anchor_every, all at most kMaxLength.
  Window(std::int64_t sinks, std::int64_t window, std::int64_t chunk, std::int64_t anchors,
         std::int64_t anchor_every);

  // How many latent frames the ring holds.
  [[nodiscard]] std::int64_t slots() const noexcept;

  // Where a frame lies while it is kept, in [0, slots()). Throws std::invalid_argument for a
  // number below 0 or from kMaxFrame on, as do the functions below.
  [[nodiscard]] std::int64_t slot(std::int64_t frame) const;

  // The frames that a chunk whose first frame is `first` sees, in the order of time.
  [[nodiscard]] std::vector<std::int64_t> visible(std::int64_t first) const;

  // The newest `anchors` anchors among the frames from `sinks` up to and without `before`.
  [[nodiscard]] std::vector<std::int64_t> anchors_before(std::int64_t before) const;

 private:
  [[nodiscard]] std::int64_t anchors_in(std::int64_t end) const noexcept;

  std::int64_t sinks_;
  std::int64_t window_;
  std::int64_t chunk_;
  std::int64_t anchors_;
  std::int64_t every_;
  std::int64_t plain_slots_;
  std::int64_t anchor_slots_;
};

}  // namespace livereel

// When the chunks of a live stream are due, how evenly they are made, and what a stream that falls
// behind does without. Time is an argument, in seconds from any origin, so that the same times give
// the same decisions.
//
// Deadlines. Each chunk is due when those before it have been played; if it comes late, playing
// waits for it. From when it is begun a chunk has at least as long as it plays itself, so that a
// consumer who asks late uses up the stream's lead but does not make it late:
//
//   play(k)   = frames(k) / rate(k)
//   due(k)    = max(played(k - 1), begin(k) + play(k)),   due(0) = end(0)
//   lead(k)   = due(k) - end(k), negative when the chunk is late
//   played(k) = max(due(k), end(k)) + play(k)
//
// Jitter is smoothed as in RFC 3550 (section 6.4.1), over how far a chunk's making falls short of
// its playing, whatever the consumer does:
//
//   spare(k)  = play(k) - (end(k) - begin(k))
//   jitter(k) = jitter(k - 1) + (|spare(k) - spare(k - 1)| - jitter(k - 1)) / 16
//
// Catching up. A stream does without, in this order, one rung a chunk: optional work; passes, one
// by one down to a single one; frames a second, by a quarter each time and down to half the target.
// It goes down a rung when one more chunk like this one would come late,
//
//   max(lead, 0) + spare < 0,
//
// and up a rung, in reverse order, after `patience` chunks in a row that took at most 0.8 of what
// they would play at the upper rung's rate. Patience is 4 chunks. It doubles, up to 64, when a rung
// is lost again within as many chunks, and is 4 again when it is held for longer.
//
// Jitter and rungs look at whole chunks only, and not at the first: it has no deadline, and a
// stream's first chunk and its last may be short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace livereel {

// What a chunk is to be made with.
struct Pace {
  bool optional_work;
  std::int32_t passes;
  double rate;  // frames a second
};

// How a chunk came; seconds.
struct Timing {
  double lead;
  double jitter;
};

class Pacer {
 public:
  // `rate` is the target in frames a second, `chunk` the frames of a whole chunk. A pacer that does
  // not adapt keeps the time and does without nothing. Throws std::invalid_argument unless rate is
  // finite and above 0 and chunk at least 1.
  Pacer(double rate, std::int64_t chunk, bool adapt);

  // A chunk is begun, for which `passes` are wanted. One that was begun and not ended is forgotten.
  // Throws std::invalid_argument for a time that is not finite or passes below 1.
  Pace begin(double now, std::int32_t passes);

  // The chunk that was begun is ready and has `frames`. Throws std::logic_error when none was
  // begun, std::invalid_argument for a time before its beginning or fewer frames than 1.
  Timing end(double now, std::int64_t frames);

 private:
  struct Begun {
    double time;
    Pace pace;
  };

  void judge(double seconds, std::int64_t frames, double reserve, const Pace& pace);
  bool go_down(const Pace& pace) noexcept;
  bool go_up() noexcept;
  [[nodiscard]] double rate_after(std::size_t cuts) const noexcept;

  double rate_;
  std::int64_t chunk_;
  bool adapt_;
  std::optional<Begun> begun_;
  std::optional<double> played_;
  std::optional<double> spare_;
  double jitter_ = 0.0;

  // The rung: optional work left out, passes left out, cuts of the rate.
  bool skip_ = false;
  std::int32_t fewer_ = 0;
  std::size_t cuts_ = 0;

  std::int32_t patience_;
  std::int32_t easy_ = 0;   // chunks in a row with time to spare
  std::int32_t trial_ = 0;  // chunks until the last rung up counts as held
};

}  // namespace livereel

#include "pacer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

namespace livereel {
namespace {

constexpr double kEasy = 0.8;
// Shares of the target rate: a quarter less each time, down to half.
constexpr std::array<double, 4> kShares{1.0, 0.75, 0.5625, 0.5};
constexpr double kSmoothing = 1.0 / 16.0;
constexpr std::int32_t kShortest = 4;
constexpr std::int32_t kLongest = 64;

void require(bool holds, const char* wanted, double got) {
  if (!holds) {
    throw std::invalid_argument(std::string(wanted) + ", got " + std::to_string(got));
  }
}

}  // namespace

Pacer::Pacer(double rate, std::int64_t chunk, bool adapt)
    : rate_(rate), chunk_(chunk), adapt_(adapt), patience_(kShortest) {
  require(std::isfinite(rate) && rate > 0, "rate must be finite and above 0", rate);
  require(chunk >= 1, "chunk must be at least 1 frame", static_cast<double>(chunk));
}

Pace Pacer::begin(double now, std::int32_t passes) {
  require(std::isfinite(now), "now must be finite", now);
  require(passes >= 1, "passes must be at least 1", passes);
  fewer_ = std::min(fewer_, passes - 1);
  begun_ = Begun{now, Pace{!skip_, passes - fewer_, rate_after(cuts_)}};
  return begun_->pace;
}

Timing Pacer::end(double now, std::int64_t frames) {
  if (!begun_) throw std::logic_error("no chunk was begun");
  const auto [began, pace] = *begun_;
  require(std::isfinite(now) && now >= began, "now must not be before the chunk's beginning", now);
  require(frames >= 1, "frames must be at least 1", static_cast<double>(frames));
  begun_.reset();

  const bool first = !played_;
  const double play = static_cast<double>(frames) / pace.rate;
  const double due = first ? now : std::max(*played_, began + play);
  const double lead = due - now;
  played_ = std::max(due, now) + play;

  if (!first && frames >= chunk_) {
    const double spare = play - (now - began);
    if (spare_) jitter_ += (std::abs(spare - *spare_) - jitter_) * kSmoothing;
    spare_ = spare;
    if (adapt_) judge(now - began, frames, std::max(lead, 0.0) + spare, pace);
  }
  return Timing{lead, jitter_};
}

// `reserve` is the lead of one more chunk like this one.
void Pacer::judge(double seconds, std::int64_t frames, double reserve, const Pace& pace) {
  if (reserve < 0) {
    easy_ = 0;
    if (go_down(pace) && trial_ > 0) {
      patience_ = std::min(2 * patience_, kLongest);
      trial_ = 0;
    }
    return;
  }
  if (trial_ > 0) {
    --trial_;
    if (trial_ == 0) patience_ = kShortest;
  }
  const double upper = rate_after(cuts_ == 0 ? 0 : cuts_ - 1);
  easy_ = seconds <= kEasy * static_cast<double>(frames) / upper ? easy_ + 1 : 0;
  if (easy_ >= patience_) {
    easy_ = 0;
    if (go_up()) trial_ = patience_;
  }
}

// Whether there was a rung to go down to.
bool Pacer::go_down(const Pace& pace) noexcept {
  if (!skip_) {
    skip_ = true;
  } else if (pace.passes > 1) {
    ++fewer_;
  } else if (cuts_ + 1 < kShares.size()) {
    ++cuts_;
  } else {
    return false;
  }
  return true;
}

// Whether there was a rung to go up to.
bool Pacer::go_up() noexcept {
  if (cuts_ > 0) {
    --cuts_;
  } else if (fewer_ > 0) {
    --fewer_;
  } else if (skip_) {
    skip_ = false;
  } else {
    return false;
  }
  return true;
}

double Pacer::rate_after(std::size_t cuts) const noexcept { return rate_ * kShares[cuts]; }

}  // namespace livereel

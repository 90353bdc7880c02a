#include "window.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace livereel {
namespace {

std::int64_t ceil_div(std::int64_t number, std::int64_t by) {
  return number / by + (number % by == 0 ? 0 : 1);
}

void check_length(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    throw std::invalid_argument(std::string(name) + " must be from " + std::to_string(low) +
                                " to " + std::to_string(high) + ", got " + std::to_string(value));
  }
}

void check_frame(std::int64_t frame) {
  if (frame < 0 || frame >= Window::kMaxFrame) {
    throw std::invalid_argument("a latent frame's number must be from 0 to 2^62 - 1, got " +
                                std::to_string(frame));
  }
}

}  // namespace

Window::Window(std::int64_t sinks, std::int64_t window, std::int64_t chunk, std::int64_t anchors,
               std::int64_t anchor_every)
    : sinks_(sinks), window_(window), chunk_(chunk), anchors_(anchors), every_(anchor_every) {
  check_length("sinks", sinks, 0, kMaxLength);
  check_length("window", window, 1, kMaxLength);
  check_length("chunk", chunk, 1, window);
  check_length("anchors", anchors, 0, kMaxLength);
  check_length("anchor_every", anchor_every, 1, kMaxLength);
  plain_slots_ = anchors == 0 ? window : window - window / every_;
  anchor_slots_ = anchors == 0 ? 0 : anchors + ceil_div(window, every_);
}

std::int64_t Window::slots() const noexcept { return sinks_ + plain_slots_ + anchor_slots_; }

// How many anchors there are from frame `sinks` up to and without `end`.
std::int64_t Window::anchors_in(std::int64_t end) const noexcept {
  if (anchors_ == 0 || end <= sinks_) return 0;
  return ceil_div(end, every_) - ceil_div(sinks_, every_);
}

std::int64_t Window::slot(std::int64_t frame) const {
  check_frame(frame);
  if (frame < sinks_) return frame;
  const std::int64_t anchor = anchors_in(frame);
  if (anchors_ > 0 && frame % every_ == 0) {
    return sinks_ + plain_slots_ + anchor % anchor_slots_;
  }
  return sinks_ + (frame - sinks_ - anchor) % plain_slots_;
}

std::vector<std::int64_t> Window::anchors_before(std::int64_t before) const {
  check_frame(before);
  const std::int64_t count = std::min(anchors_, anchors_in(before));
  const std::int64_t end = ceil_div(before, every_);  // in units of every_
  std::vector<std::int64_t> frames;
  frames.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = end - count; i < end; ++i) frames.push_back(i * every_);
  return frames;
}

std::vector<std::int64_t> Window::visible(std::int64_t first) const {
  check_frame(first);
  const std::int64_t newest = std::min(first, std::max(sinks_, first - (window_ - chunk_)));
  std::vector<std::int64_t> frames;
  frames.reserve(static_cast<std::size_t>(sinks_ + anchors_ + window_ - chunk_));
  for (std::int64_t i = 0; i < std::min(sinks_, first); ++i) frames.push_back(i);
  const std::vector<std::int64_t> anchors = anchors_before(newest);
  frames.insert(frames.end(), anchors.begin(), anchors.end());
  for (std::int64_t i = newest; i < first; ++i) frames.push_back(i);
  return frames;
}

}  // namespace livereel

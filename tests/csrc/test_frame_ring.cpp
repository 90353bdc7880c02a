// The ring in one thread, between two threads, and between two processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "frame_ring.h"

namespace {

using livereel::FrameRing;
using livereel::FrameShape;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint32_t kSide = 60;
constexpr FrameShape kShape{2, {kSide, kSide}};
constexpr FrameRing::Seconds kNow{0.0}, kLong{20.0};

// A frame that says its number in every byte.
Bytes frame(std::uint64_t number) {
  return Bytes(std::size_t{kSide} * kSide, static_cast<std::uint8_t>(number));
}

bool put(FrameRing& ring, std::uint64_t number, FrameRing::Seconds timeout = kNow) {
  return ring.write(frame(number).data(), kShape, number, timeout);
}

bool whole(const FrameRing::Frame& frame) {
  for (std::uint32_t i = 0; i < kSide * kSide; ++i) {
    if (frame.data()[i] != static_cast<std::uint8_t>(frame.tag())) return false;
  }
  return true;
}

template <typename Call>
bool refused(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

std::shared_ptr<FrameRing> small(std::uint32_t slots, bool drop_oldest) {
  return FrameRing::create(slots, std::uint64_t{kSide} * kSide, drop_oldest);
}

void frames_come_in_order_and_whole() {
  const auto ring = small(3, false);
  CHECK(ring->read(kNow) == nullptr);
  for (std::uint64_t i = 0; i < 10; ++i) {
    CHECK(put(*ring, i));
    const auto got = ring->read(kNow);
    CHECK(got && got->number() == i && got->tag() == i && whole(*got));
    CHECK(got->shape().rank == 2 && got->shape().dims[0] == kSide);
    CHECK(ring->room() == 2);
  }
  CHECK(ring->room() == 3 && ring->dropped() == 0);
}

void a_full_ring_holds_the_writer_up_until_a_frame_is_let_go() {
  const auto ring = small(2, false);
  CHECK(put(*ring, 0) && put(*ring, 1) && !put(*ring, 2));
  auto first = ring->read(kNow);
  CHECK(!put(*ring, 2));  // it is being looked at
  first.reset();
  CHECK(put(*ring, 2));
  CHECK(ring->read(kNow)->number() == 1);
  CHECK(ring->read(kNow)->number() == 2);
}

void the_oldest_unread_frame_makes_room_and_none_that_is_being_read() {
  const auto ring = small(3, true);
  for (std::uint64_t i = 0; i < 3; ++i) CHECK(put(*ring, i));
  const auto held = ring->read(kNow);
  for (std::uint64_t i = 3; i < 8; ++i) CHECK(put(*ring, i));
  CHECK(held->number() == 0 && whole(*held));
  CHECK(ring->dropped() == 5);
  CHECK(ring->read(kNow)->number() == 6);
  CHECK(ring->read(kNow)->number() == 7);
  CHECK(ring->read(kNow) == nullptr);
}

void frames_outlive_their_ring() {
  auto ring = small(2, false);
  CHECK(put(*ring, 7));
  const auto got = ring->read(kNow);
  ring.reset();
  CHECK(whole(*got));
}

void sizes_are_checked() {
  CHECK(refused([] { FrameRing::create(1, 16, false); }));
  CHECK(refused([] { FrameRing::create(FrameRing::kMaxSlots + 1, 16, false); }));
  CHECK(refused([] { FrameRing::create(2, 0, false); }));
  CHECK(refused([] { FrameRing::create(2, FrameRing::kMaxSlotBytes + 1, false); }));
  const auto ring = small(2, false);
  const Bytes data(16);
  CHECK(refused([&] { ring->write(data.data(), {2, {kSide, kSide + 1}}, 0, kNow); }));
  CHECK(refused([&] { ring->write(data.data(), {5, {1, 1, 1, 1}}, 0, kNow); }));
  const std::uint32_t huge = 0xffffffff;
  CHECK(refused([&] { ring->write(data.data(), {4, {huge, huge, huge, huge}}, 0, kNow); }));
}

void only_a_ring_can_be_attached_to_and_once() {
  const int plain = memfd_create("plain", MFD_CLOEXEC);
  CHECK(ftruncate(plain, 1 << 16) == 0);
  CHECK(refused([&] { FrameRing::attach(plain); }));
  close(plain);
  CHECK(refused([] { FrameRing::attach(-1); }));
  const auto ring = small(2, false);
  CHECK(ftruncate(ring->fd(), 16) != 0);  // which would end whoever looks behind its end
  const auto reader = FrameRing::attach(ring->fd());
  CHECK(reader->slots() == 2 && reader->slot_bytes() == ring->slot_bytes());
  CHECK(refused([&] { FrameRing::attach(ring->fd()); }));
}

void a_reader_that_left_makes_room() {
  const auto ring = small(2, false);
  auto reader = FrameRing::attach(ring->fd());
  CHECK(put(*ring, 0) && put(*ring, 1) && !put(*ring, 2));
  reader.reset();
  for (std::uint64_t i = 2; i < 6; ++i) CHECK(put(*ring, i));
}

// A writer and a reader on one mapping, so that a sanitizer sees both.
void two_threads(bool drop_oldest) {
  constexpr std::uint64_t kCount = 3000;
  const auto ring = small(4, drop_oldest);
  std::atomic<bool> written{false};
  std::thread writer([&] {
    for (std::uint64_t i = 0; i < kCount; ++i) CHECK(put(*ring, i, kLong));
    written.store(true);
  });
  std::uint64_t next = 0, seen = 0;
  std::vector<std::unique_ptr<FrameRing::Frame>> held;
  for (;;) {
    const bool last = written.load();
    auto got = ring->read(FrameRing::Seconds{0.001});
    if (!got && last) break;
    if (!got) continue;
    CHECK(got->number() >= next && got->tag() == got->number() && whole(*got));
    CHECK(drop_oldest || got->number() == next);
    next = got->number() + 1;
    ++seen;
    held.push_back(std::move(got));
    if (held.size() == 3) held.erase(held.begin());
  }
  writer.join();
  CHECK(next == kCount && seen + ring->dropped() == kCount);
}

void two_processes() {
  constexpr std::uint64_t kCount = 500;
  const auto ring = small(4, false);
  const pid_t child = fork();
  if (child == 0) {
    const auto reader = FrameRing::attach(ring->fd());
    for (std::uint64_t i = 0; i < kCount; ++i) {
      const auto got = reader->read(kLong);
      CHECK(got && got->number() == i && whole(*got));
    }
    _exit(0);
  }
  for (std::uint64_t i = 0; i < kCount; ++i) CHECK(put(*ring, i, kLong));
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// A reader killed while it looks at a frame holds nobody up.
void a_dead_reader_makes_room(bool drop_oldest) {
  const auto ring = small(2, drop_oldest);
  CHECK(put(*ring, 0) && put(*ring, 1));
  const pid_t child = fork();
  if (child == 0) {
    const auto reader = FrameRing::attach(ring->fd());
    const auto first = reader->read(kLong);
    const auto second = reader->read(kLong);
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
  for (std::uint64_t i = 2; i < 10; ++i) CHECK(put(*ring, i));
}

}  // namespace

int main() {
  frames_come_in_order_and_whole();
  a_full_ring_holds_the_writer_up_until_a_frame_is_let_go();
  the_oldest_unread_frame_makes_room_and_none_that_is_being_read();
  frames_outlive_their_ring();
  sizes_are_checked();
  only_a_ring_can_be_attached_to_and_once();
  a_reader_that_left_makes_room();
  two_processes();
  a_dead_reader_makes_room(false);
  a_dead_reader_makes_room(true);
  two_threads(false);
  two_threads(true);
  return 0;
}

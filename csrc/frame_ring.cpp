#include "frame_ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace livereel {

namespace {

constexpr std::uint64_t kMagic = 0x31474e4952524c00;  // "\0LRRING1"
constexpr std::size_t kLine = 64;                     // of the cache
constexpr std::uint64_t kPage = 4096;
constexpr std::int32_t kNobodyYet = 0, kLeft = -1;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

constexpr std::uint64_t kNoNumber = (std::uint64_t{1} << 62) - 1;
constexpr std::uint64_t number_of(std::uint64_t word) { return word >> 2; }

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t to) {
  return (value + to - 1) / to * to;
}

[[noreturn]] void fail(const char* what) {
  throw std::runtime_error(std::string(what) + ": " + std::generic_category().message(errno));
}

// Until `deadline`, a little longer each time: the first waits are shorter than a frame takes.
class Patience {
 public:
  explicit Patience(FrameRing::Seconds timeout)
      : deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::min(timeout, FrameRing::Seconds(kLongest)))) {}
  bool wait() {
    const Clock::time_point now = Clock::now();
    if (now >= deadline_) return false;
    std::this_thread::sleep_for(std::min<Clock::duration>(pause_, deadline_ - now));
    pause_ = std::min(pause_ * 2, std::chrono::microseconds(1000));
    return true;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr double kLongest = 86400.0;
  Clock::time_point deadline_;
  std::chrono::microseconds pause_{20};
};

// What the two sides must agree on; read once, and never again from memory that another can write.
struct Sizes {
  std::uint64_t magic;
  std::uint64_t slot_bytes;
  std::uint32_t slots;
  std::uint32_t drop_oldest;
};

}  // namespace

// A slot's state and its frame's number in one word.
enum class FrameRing::Stage : std::uint8_t { kFree, kWriting, kFull, kReading };

std::uint64_t FrameRing::word(Stage stage, std::uint64_t number) {
  return number << 2 | static_cast<std::uint64_t>(stage);
}

FrameRing::Stage FrameRing::stage_of(std::uint64_t word) { return static_cast<Stage>(word & 3); }

struct FrameRing::Found {
  std::uint32_t slot;
  std::uint64_t word;
};

struct alignas(kLine) FrameRing::Header {
  Sizes sizes;
  std::atomic<std::uint64_t> written;  // frames so far
  std::atomic<std::uint64_t> dropped;
  std::atomic<std::int32_t> reader;  // its process, or kNobodyYet, or kLeft
};

struct alignas(kLine) FrameRing::Slot {
  std::atomic<std::uint64_t> word;
  std::uint64_t tag;
  FrameShape shape;
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "or processes cannot share it");

std::optional<std::uint64_t> FrameShape::bytes() const {
  if (rank > kMaxRank) return std::nullopt;
  std::uint64_t product = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    if (dims[i] != 0 && product > (std::uint64_t{1} << 63) / dims[i]) return std::nullopt;
    product *= dims[i];
  }
  return product;
}

FrameRing::Frame::Frame(std::shared_ptr<FrameRing> ring, std::uint32_t slot, std::uint64_t number,
                        std::uint64_t tag, const FrameShape& shape)
    : ring_(std::move(ring)), slot_(slot), number_(number), tag_(tag), shape_(shape) {}

FrameRing::Frame::~Frame() {
  ring_->states_[slot_].word.store(word(Stage::kFree), std::memory_order_release);
}

std::uint8_t* FrameRing::Frame::data() const { return ring_->data(slot_); }

std::shared_ptr<FrameRing> FrameRing::create(std::uint32_t slots, std::uint64_t slot_bytes,
                                             bool drop_oldest) {
  if (!possible(slots, slot_bytes)) {
    throw std::invalid_argument("a ring has 2 to 1024 slots of 1 to 2^32 bytes");
  }
  const int fd = memfd_create("livereel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail("no shared memory could be made");
  // All of it is taken now: a page that is not there when it is written to ends the process.
  errno = posix_fallocate(fd, 0, static_cast<off_t>(size(slots, slot_bytes)));
  if (errno != 0 || fchmod(fd, S_IRUSR | S_IWUSR) != 0 || fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    const int reason = errno;
    close(fd);
    errno = reason;
    fail("shared memory could not be had");
  }
  std::shared_ptr<FrameRing> ring(new FrameRing(fd, slots, slot_bytes, drop_oldest));
  new (ring->memory_)
      Header{{kMagic, slot_bytes, slots, drop_oldest ? 1U : 0U}, {0}, {0}, {kNobodyYet}};
  for (std::uint32_t i = 0; i < slots; ++i) {
    new (&ring->states_[i]) Slot{{word(Stage::kFree)}, 0, {}};
  }
  return ring;
}

std::shared_ptr<FrameRing> FrameRing::attach(int fd) {
  struct stat found{};
  Sizes sizes{};
  const bool ours = fstat(fd, &found) == 0 && found.st_uid == geteuid() &&
                    fcntl(fd, F_GET_SEALS) == kSeals &&
                    pread(fd, &sizes, sizeof sizes, 0) == sizeof sizes && sizes.magic == kMagic;
  if (!ours || !possible(sizes.slots, sizes.slot_bytes) ||
      static_cast<std::uint64_t>(found.st_size) != size(sizes.slots, sizes.slot_bytes)) {
    throw std::invalid_argument("the file descriptor is not that of a frame ring");
  }
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) fail("the ring's file descriptor could not be copied");
  std::shared_ptr<FrameRing> ring(
      new FrameRing(own, sizes.slots, sizes.slot_bytes, sizes.drop_oldest != 0));
  std::int32_t nobody = kNobodyYet;
  if (!ring->header_->reader.compare_exchange_strong(nobody, getpid())) {
    throw std::invalid_argument("the frame ring has had a reader already");
  }
  ring->reads_ = true;
  return ring;
}

void* FrameRing::map(int fd, std::size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    close(fd);
    fail("shared memory could not be mapped");
  }
  return memory;
}

FrameRing::FrameRing(int fd, std::uint32_t slots, std::uint64_t slot_bytes, bool drop_oldest)
    : fd_(fd),
      slots_(slots),
      slot_bytes_(slot_bytes),
      drop_oldest_(drop_oldest),
      memory_(map(fd, size(slots, slot_bytes))),
      header_(static_cast<Header*>(memory_)),
      states_(reinterpret_cast<Slot*>(static_cast<std::uint8_t*>(memory_) + sizeof(Header))) {}

FrameRing::~FrameRing() {
  if (reads_) header_->reader.store(kLeft, std::memory_order_release);
  munmap(memory_, size(slots_, slot_bytes_));
  close(fd_);
}

bool FrameRing::possible(std::uint32_t slots, std::uint64_t slot_bytes) {
  return slots >= 2 && slots <= kMaxSlots && slot_bytes >= 1 && slot_bytes <= kMaxSlotBytes;
}

std::uint64_t FrameRing::offset(std::uint32_t slots, std::uint64_t slot_bytes, std::uint32_t slot) {
  return round_up(sizeof(Header) + sizeof(Slot) * slots, kPage) +
         round_up(slot_bytes, kLine) * slot;
}

std::uint64_t FrameRing::size(std::uint32_t slots, std::uint64_t slot_bytes) {
  return offset(slots, slot_bytes, slots);
}

std::uint8_t* FrameRing::data(std::uint32_t slot) const {
  return static_cast<std::uint8_t*>(memory_) + offset(slots_, slot_bytes_, slot);
}

bool FrameRing::write(const void* data, const FrameShape& shape, std::uint64_t tag,
                      Seconds timeout) {
  const std::optional<std::uint64_t> bytes = shape.bytes();
  if (!bytes || *bytes > slot_bytes_) throw std::invalid_argument("no slot has room for the frame");
  Patience patience(timeout);
  std::optional<std::uint32_t> at = claim();
  while (!at) {
    if (!patience.wait()) return false;
    at = claim();
  }
  Slot& slot = states_[*at];
  std::memcpy(this->data(*at), data, *bytes);
  slot.tag = tag;
  slot.shape = shape;
  const std::uint64_t number = header_->written.load(std::memory_order_relaxed);
  slot.word.store(word(Stage::kFull, number), std::memory_order_release);
  header_->written.store(number + 1, std::memory_order_release);
  return true;
}

std::optional<FrameRing::Found> FrameRing::oldest(Stage stage, std::uint64_t below) const {
  Found best{slots_, word(stage, below)};
  for (std::uint32_t i = 0; i < slots_; ++i) {
    const std::uint64_t found = states_[i].word.load(std::memory_order_acquire);
    if (stage_of(found) == stage && found < best.word) best = Found{i, found};
  }
  return best.slot < slots_ ? std::optional<Found>(best) : std::nullopt;
}

// A slot to write to, if there is one now.
std::optional<std::uint32_t> FrameRing::claim() {
  for (;;) {
    std::optional<Found> found = oldest(Stage::kFree, kNoNumber);
    if (!found && reader_gone()) {
      free_all_being_read();
      found = oldest(Stage::kFree, kNoNumber);
    } else if (!found && !drop_oldest_) {
      return std::nullopt;
    }
    if (found) {
      states_[found->slot].word.store(word(Stage::kWriting), std::memory_order_relaxed);
      return found->slot;
    }
    found = oldest(Stage::kFull, kNoNumber);
    if (!found) return std::nullopt;
    if (states_[found->slot].word.compare_exchange_strong(found->word, word(Stage::kWriting),
                                                          std::memory_order_acquire)) {
      header_->dropped.fetch_add(1, std::memory_order_relaxed);
      return found->slot;
    }
  }
}

std::unique_ptr<FrameRing::Frame> FrameRing::read(Seconds timeout) {
  Patience patience(timeout);
  for (;;) {
    if (std::unique_ptr<Frame> frame = take()) return frame;
    if (!patience.wait()) return nullptr;
  }
}

std::unique_ptr<FrameRing::Frame> FrameRing::take() {
  for (;;) {
    // Of the frames counted here, those that are not found below have been read or dropped; a frame
    // that is written meanwhile could be found while one before it is not.
    const std::uint64_t written = header_->written.load(std::memory_order_acquire);
    std::optional<Found> found = oldest(Stage::kFull, written);
    if (!found) return nullptr;
    Slot& slot = states_[found->slot];
    const std::uint64_t number = number_of(found->word);
    if (!slot.word.compare_exchange_strong(found->word, word(Stage::kReading, number),
                                           std::memory_order_acquire)) {
      continue;  // dropped just now
    }
    const FrameShape shape = slot.shape;
    auto frame = std::make_unique<Frame>(shared_from_this(), found->slot, number, slot.tag, shape);
    const std::optional<std::uint64_t> bytes = shape.bytes();
    if (!bytes || *bytes > slot_bytes_) throw std::runtime_error("a slot of the ring is damaged");
    return frame;
  }
}

bool FrameRing::reader_gone() const {
  const std::int32_t reader = header_->reader.load(std::memory_order_acquire);
  return reader == kLeft || (reader > 0 && kill(reader, 0) != 0 && errno == ESRCH);
}

void FrameRing::free_all_being_read() {
  for (std::uint32_t i = 0; i < slots_; ++i) {
    const std::uint64_t found = states_[i].word.load(std::memory_order_acquire);
    if (stage_of(found) == Stage::kReading) {
      states_[i].word.store(word(Stage::kFree), std::memory_order_release);
    }
  }
}

std::uint32_t FrameRing::room() const {
  std::uint32_t free = 0;
  for (std::uint32_t i = 0; i < slots_; ++i) {
    free += stage_of(states_[i].word.load(std::memory_order_acquire)) == Stage::kFree ? 1 : 0;
  }
  return free;
}

std::uint64_t FrameRing::dropped() const {
  return header_->dropped.load(std::memory_order_relaxed);
}

}  // namespace livereel

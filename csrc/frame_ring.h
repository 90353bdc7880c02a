// Frames from one process to another through shared memory: one writer, one reader, no locks.
//
// The memory is a sealed memfd of mode 0600: it has no name that another process could guess or
// that could stay behind, it can be neither shrunk nor grown, and who is to read gets its file
// descriptor. It begins with a header and the slots' states; then follow the slots. Each slot is
// free, being written, full, or being read, which is one atomic word together with its frame's
// number:
//
//   free -> writing        writer alone
//   writing -> full        writer alone
//   full -> reading        reader, by compare and swap
//   full -> writing        writer, by compare and swap: the oldest frame is dropped
//   reading -> free        reader alone; or the writer, when there is no reader any more
//
// So frames are read where they lie, for as long as the reader likes, and are never torn. Frames
// are read in the order of their writing; the numbers of those that were dropped are missing.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace livereel {

// What a slot holds: bytes of shape `dims[0..rank)`.
struct FrameShape {
  static constexpr std::uint32_t kMaxRank = 4;
  std::uint32_t rank = 0;
  std::array<std::uint32_t, kMaxRank> dims{};

  // The product of all sides; nothing for ranks above the highest and for products past 2^63.
  [[nodiscard]] std::optional<std::uint64_t> bytes() const;
};

class FrameRing : public std::enable_shared_from_this<FrameRing> {
 public:
  using Seconds = std::chrono::duration<double>;
  static constexpr std::uint32_t kMaxSlots = 1024;
  static constexpr std::uint64_t kMaxSlotBytes = std::uint64_t{1} << 32;

  // A frame as it lies in its slot, which is free again when this is gone.
  class Frame {
   public:
    Frame(std::shared_ptr<FrameRing> ring, std::uint32_t slot, std::uint64_t number,
          std::uint64_t tag, const FrameShape& shape);
    ~Frame();
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    Frame(Frame&&) = delete;
    Frame& operator=(Frame&&) = delete;

    [[nodiscard]] std::uint8_t* data() const;
    [[nodiscard]] std::uint64_t number() const { return number_; }
    [[nodiscard]] std::uint64_t tag() const { return tag_; }
    [[nodiscard]] const FrameShape& shape() const { return shape_; }

   private:
    std::shared_ptr<FrameRing> ring_;
    std::uint32_t slot_;
    std::uint64_t number_, tag_;
    FrameShape shape_;
  };

  // New memory of 2 to `kMaxSlots` slots of at most `kMaxSlotBytes`, all of it taken at once. With
  // `drop_oldest` a writer that finds no free slot takes that of the oldest unread frame; otherwise
  // it waits. Throws std::invalid_argument for sizes that cannot be, std::runtime_error where the
  // system gives no memory.
  static std::shared_ptr<FrameRing> create(std::uint32_t slots, std::uint64_t slot_bytes,
                                           bool drop_oldest);

  // The reader's end of memory that `create` made, by a file descriptor that stays the caller's.
  // Throws std::invalid_argument for what is no such memory, or not this user's, or has had a
  // reader.
  static std::shared_ptr<FrameRing> attach(int fd);

  ~FrameRing();
  FrameRing(const FrameRing&) = delete;
  FrameRing& operator=(const FrameRing&) = delete;
  FrameRing(FrameRing&&) = delete;
  FrameRing& operator=(FrameRing&&) = delete;

  // Copy a frame in; for one thread at a time. False when no slot came free in time, which a reader
  // that has died or left does not cause: its frames make room. Throws std::invalid_argument for a
  // shape that no slot has room for.
  bool write(const void* data, const FrameShape& shape, std::uint64_t tag, Seconds timeout);

  // The oldest unread frame, null when none came in time; for one thread at a time. Throws
  // std::runtime_error when what the slot says of itself cannot be.
  std::unique_ptr<Frame> read(Seconds timeout);

  // Slots that could be written now without dropping a frame.
  std::uint32_t room() const;
  // Frames that were written over unread.
  std::uint64_t dropped() const;
  std::uint32_t slots() const { return slots_; }
  std::uint64_t slot_bytes() const { return slot_bytes_; }
  int fd() const { return fd_; }

 private:
  enum class Stage : std::uint8_t;
  struct Found;
  struct Header;
  struct Slot;

  FrameRing(int fd, std::uint32_t slots, std::uint64_t slot_bytes, bool drop_oldest);
  static bool possible(std::uint32_t slots, std::uint64_t slot_bytes);
  static std::uint64_t offset(std::uint32_t slots, std::uint64_t slot_bytes, std::uint32_t slot);
  static std::uint64_t size(std::uint32_t slots, std::uint64_t slot_bytes);
  static void* map(int fd, std::size_t size);
  static std::uint64_t word(Stage stage, std::uint64_t number = 0);
  static Stage stage_of(std::uint64_t word);

  // The slot in that stage whose frame has the lowest number, if one is below `below`.
  std::optional<Found> oldest(Stage stage, std::uint64_t below) const;
  std::optional<std::uint32_t> claim();
  std::unique_ptr<Frame> take();
  bool reader_gone() const;
  void free_all_being_read();
  std::uint8_t* data(std::uint32_t slot) const;

  int fd_;
  std::uint32_t slots_;
  std::uint64_t slot_bytes_;
  bool drop_oldest_, reads_ = false;
  void* memory_;
  Header* header_;
  Slot* states_;
};

}  // namespace livereel

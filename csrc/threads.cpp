#include "threads.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace livereel {
namespace {

constexpr int kSpins = 4000;  // some 50 to 150 us, about what lies between two calls
constexpr std::size_t kJobs = 8;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Lets threads wait until something is so, for a short while without sleeping.
class Event {
 public:
  template <typename So>
  void wait(const So& so) {
    for (int i = 0; i < kSpins; ++i) {
      if (so()) return;
      pause();
    }
    std::unique_lock lock(mutex_);
    ++sleepers_;
    condition_.wait(lock, so);
    --sleepers_;
  }

  // To be called after what made it so.
  void tell() {
    if (sleepers_ == 0) return;
    mutex_.lock();  // a thread that found it not to be so is asleep by now
    mutex_.unlock();
    condition_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  std::atomic<int> sleepers_{0};
};

// A job's place, which outlives the job: a thread may look at it late. Its ticket holds, from the
// highest bit on, the job's number (40 bits), its parts (12) and how many of them were claimed
// (12). Whoever raises it claims a part, and the job lasts until that part is done.
class Job {
 public:
  // Takes the place if nobody has it.
  bool take() { return !taken_.exchange(true, std::memory_order_acquire); }

  void open(std::size_t parts, void (*run)(const void*, std::size_t), const void* context) {
    run_ = run;
    context_ = context;
    left_ = parts;
    ticket_ = ((ticket_ >> kNumber) + 1) << kNumber | std::uint64_t{parts} << kParts;
  }

  // Runs a part that nobody has claimed; whether there was one.
  bool help() {
    std::uint64_t ticket = ticket_;
    do {
      if ((ticket & kMask) == (ticket >> kParts & kMask)) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket + 1));
    try {
      if (!failed_) run_(context_, ticket & kMask);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    if (--left_ == 0) done_.tell();
    return true;
  }

  // Waits for the parts that others claimed and gives the place away.
  void close() {
    done_.wait([&] { return left_ == 0; });
    const std::exception_ptr error = std::exchange(error_, nullptr);
    failed_ = false;
    taken_.store(false, std::memory_order_release);
    if (error) std::rethrow_exception(error);
  }

 private:
  static constexpr int kParts = 12, kNumber = 24;
  static constexpr std::uint64_t kMask = (1 << kParts) - 1;

  std::atomic<bool> taken_{false};
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::size_t> left_{0};
  void (*run_)(const void*, std::size_t) = nullptr;
  const void* context_ = nullptr;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
  Event done_;
};

class Pool {
 public:
  // The process's own. It is never destroyed: its threads may outlive all statics.
  static Pool& get() {
    Pool* pool = current_;
    if (pool == nullptr) {
      auto* fresh = new Pool;
      if (current_.compare_exchange_strong(pool, fresh)) return *fresh;
      delete fresh;
    }
    return *pool;
  }

  void run(std::size_t parts, void (*work)(const void*, std::size_t), const void* context) {
    for (Job& job : jobs_) {
      if (!job.take()) continue;
      grow(parts - 1);
      job.open(parts, work, context);
      ++opened_;
      opening_.tell();
      while (job.help()) {
      }
      job.close();
      return;
    }
    for (std::size_t i = 0; i < parts; ++i) work(context, i);  // there are jobs enough
  }

 private:
  Pool() {
#ifndef _WIN32
    // Of all threads, a fork takes the calling one alone.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current_ = nullptr; });
    static_cast<void>(registered);
#endif
  }

  // Makes threads up to so many, or as many as there can be.
  void grow(std::size_t wanted) {
    if (threads_ >= wanted) return;
    const std::scoped_lock lock(growing_);
    for (; threads_ < wanted; ++threads_) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;
      }
    }
  }

  [[noreturn]] void serve() {
    for (;;) {
      const std::uint64_t seen = opened_;
      for (Job& job : jobs_) {
        while (job.help()) {
        }
      }
      opening_.wait([&] { return opened_ != seen; });
    }
  }

  static std::atomic<Pool*> current_;

  std::array<Job, kJobs> jobs_;
  std::atomic<std::uint64_t> opened_{0};
  Event opening_;
  std::mutex growing_;
  std::atomic<std::size_t> threads_{0};
};

std::atomic<Pool*> Pool::current_{nullptr};

}  // namespace

void run_parts(std::size_t parts, void (*run)(const void* context, std::size_t part),
               const void* context) {
  if (parts > 1) {
    Pool::get().run(parts, run, context);
  } else if (parts == 1) {
    run(context, 0);
  }
}

}  // namespace livereel

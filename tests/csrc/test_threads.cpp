// Work in parts: each once, whoever does it, whatever fails, forks or comes at the same time.
#include "threads.h"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

using livereel::in_parts;

namespace {

// Every item is in one part, parts are in order and even, and there is a part for each thread.
void check_parts(std::size_t count, int threads) {
  std::vector<int> seen(count);
  std::atomic<std::size_t> parts{0};
  in_parts(count, threads, [&](std::size_t part, std::size_t begin, std::size_t end) {
    const std::size_t all = livereel::parts_of(count, threads);
    CHECK(begin == count * part / all && end == count * (part + 1) / all);
    for (std::size_t i = begin; i < end; ++i) ++seen[i];
    ++parts;
  });
  CHECK(parts == livereel::parts_of(count, threads));
  for (const int times : seen) CHECK(times == 1);
}

// Many regions one after another, each reading what the one before it wrote.
void check_order(int regions, int threads) {
  std::vector<int> values(64);
  for (int r = 0; r < regions; ++r) {
    in_parts(values.size(), threads, [&](std::size_t, std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        CHECK(values[i] == r);
        ++values[i];
      }
    });
    CHECK(values[static_cast<std::size_t>(r) % values.size()] == r + 1);
  }
}

void check_nesting(std::size_t depth, std::atomic<int>& leaves) {
  in_parts(3, 3, [&](std::size_t, std::size_t begin, std::size_t end) {
    CHECK(end == begin + 1);
    if (depth == 0) {
      ++leaves;
    } else {
      check_nesting(depth - 1, leaves);
    }
  });
}

std::string thrown(std::size_t parts, std::size_t bad) {
  try {
    in_parts(parts, static_cast<int>(parts), [&](std::size_t part, std::size_t, std::size_t) {
      if (part % bad == bad - 1) throw std::runtime_error("a bad part");
    });
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// A fork has no threads but its own, and makes others.
void check_fork() {
#ifndef _WIN32
  const pid_t child = fork();
  if (child == 0) {
    check_order(100, 3);
    std::atomic<int> leaves{0};
    check_nesting(1, leaves);
    _exit(leaves == 9 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
}

}  // namespace

int main() {
  check_fork();  // before there is a pool
  for (const int threads : {-1, 0, 1, 2, 3, 8}) {
    for (const std::size_t count : {0, 1, 2, 7, 64}) check_parts(count, threads);
  }
  check_order(20000, 2);
  check_order(2000, 5);

  std::atomic<int> leaves{0};
  check_nesting(4, leaves);  // deeper than there are places for jobs at once
  CHECK(leaves == 243);

  for (int i = 0; i < 200; ++i) {
    CHECK(thrown(4, 4) == "a bad part");
    CHECK(thrown(4, 1) == "a bad part");
    CHECK(thrown(4, 5).empty());
  }

  std::vector<std::thread> callers;
  callers.reserve(12);  // more than there are places
  for (int i = 0; i < 12; ++i) callers.emplace_back([] { check_order(500, 3); });
  for (auto& caller : callers) caller.join();

  for (int i = 0; i < 3; ++i) check_fork();
  check_order(100, 2);
  return 0;
}

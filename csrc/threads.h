// Work shared among threads, each part by whoever comes first. The calling thread does what no
// other has begun and waits for nobody else, so that work goes on at its own pace where another
// process has the other cores.
#pragma once

#include <algorithm>
#include <cstddef>

namespace livereel {

// Into how many parts `in_parts` cuts.
inline std::size_t parts_of(std::size_t count, int threads) {
  return std::min(count, static_cast<std::size_t>(std::clamp(threads, 1, 1024)));
}

// Calls run(context, i) once for each i below `parts`, in this thread and in up to parts - 1 of a
// pool that is made when it is first wanted, anew after a fork. Where calls throw, the rest may be
// left out, and the first exception is thrown on. Parts may share out work of their own.
void run_parts(std::size_t parts, void (*run)(const void* context, std::size_t part),
               const void* context);

// Calls work(part, begin, end) for even parts of [0, count), one for each thread.
template <typename Work>
void in_parts(std::size_t count, int threads, const Work& work) {
  const std::size_t parts = parts_of(count, threads);
  const auto run = [&](std::size_t i) { work(i, count * i / parts, count * (i + 1) / parts); };
  run_parts(
      parts,
      [](const void* context, std::size_t i) { (*static_cast<const decltype(run)*>(context))(i); },
      &run);
}

}  // namespace livereel

// Work shared among threads of OpenMP's pool, which is torch's own where both link one libgomp: a
// second pool would fight with the first, whose threads spin for a while after their work is done.
#pragma once

#include <algorithm>
#include <cstddef>

namespace livereel {

// Into how many parts `in_parts` cuts.
inline std::size_t parts_of(std::size_t count, int threads) {
  return std::min(count, static_cast<std::size_t>(std::max(threads, 1)));
}

// Calls work(part, begin, end) for even parts of [0, count), one for each thread. It must not
// throw.
template <typename Work>
void in_parts(std::size_t count, int threads, const Work& work) {
  const std::size_t parts = parts_of(count, threads);
  const auto run = [&](std::size_t i) { work(i, count * i / parts, count * (i + 1) / parts); };
  if (parts == 1) return run(0);
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
#endif
  for (std::size_t i = 0; i < parts; ++i) run(i);
}

}  // namespace livereel

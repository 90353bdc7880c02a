// livereel-run: a video from a package and a prompt's embedding, without Python.
#ifdef __linux__
#include <malloc.h>
#endif

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <system_error>

#include "livereel/stream.h"
#include "y4m.h"

namespace {

constexpr const char* kUsage =
    "usage: livereel-run PACKAGE --prompt-embeds FILE --seconds N -o OUT.y4m [--seed N]\n"
    "\n"
    "PACKAGE is a folder that `livereel export --format aoti` wrote, FILE what `livereel embed`\n"
    "wrote; OUT may be - for the standard output.\n";
constexpr double kMaxSeconds = 24 * 3600.0;

struct Arguments {
  std::string package;
  std::string embeds;
  std::string out;
  double seconds = 0;
  std::uint64_t seed = 0;
};

[[noreturn]] void refuse(const std::string& why) {
  throw livereel::Error(livereel::Status::kArgument, why);
}

template <typename Number>
Number number(std::string_view name, std::string_view text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [ptr, error] = std::from_chars(text.data(), end, value);
  if (ptr != end || error != std::errc()) {
    refuse(std::string(name) + " must be a number, got " + std::string(text));
  }
  return value;
}

Arguments read(int count, char* const* values) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string_view name = values[i];
    if (!name.starts_with('-')) {
      if (!arguments.package.empty()) refuse("one package was wanted");
      arguments.package = name;
      continue;
    }
    if (++i == count) refuse(std::string(name) + " wants a value");
    const std::string_view value = values[i];
    if (name == "--prompt-embeds") {
      arguments.embeds = value;
    } else if (name == "-o") {
      arguments.out = value;
    } else if (name == "--seconds") {
      arguments.seconds = number<double>(name, value);
    } else if (name == "--seed") {
      arguments.seed = number<std::uint64_t>(name, value);
    } else {
      refuse(std::string(name) + " is unknown");
    }
  }
  if (arguments.package.empty() || arguments.embeds.empty() || arguments.out.empty()) {
    refuse("a package, --prompt-embeds and -o are wanted");
  }
  if (!(arguments.seconds > 0 && arguments.seconds <= kMaxSeconds)) {
    refuse("--seconds must be above 0 and at most 86400");
  }
  return arguments;
}

// Every step asks for the same large blocks again. glibc would hand each back to the system and
// have it cleared anew: without that the demo's frames came 1.4 times as fast.
void keep_memory() {
#ifdef __GLIBC__
  constexpr int kMost = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kMost);
  mallopt(M_TRIM_THRESHOLD, kMost);
  mallopt(M_TOP_PAD, 1 << 26);
#endif
}

void make(const Arguments& arguments) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const livereel::Embeds prompt = livereel::read_embeds(arguments.embeds);
  const Clock::time_point begun = Clock::now();
  livereel::Options options;
  options.seed = arguments.seed;
  livereel::Stream stream(arguments.package, prompt, options);
  const double loaded = since(begun);
  livereel::Y4mWriter writer(arguments.out, stream.width(), stream.height(), stream.fps());
  const auto wanted = std::max<std::int64_t>(1, std::llround(arguments.seconds * stream.fps()));
  std::int64_t done = 0;
  double first = 0;
  const Clock::time_point start = Clock::now();
  stream.run([&](const livereel::Chunk& chunk) {
    if (done == 0) first = since(start);
    const std::int64_t size = chunk.height * chunk.width * 3;
    for (std::int64_t i = 0; i < chunk.count && done < wanted; ++i, ++done) {
      writer.write(chunk.frames.data() + (i * size));
    }
    return done < wanted;
  });
  writer.close();
  std::fprintf(stderr,
               "%s: %lld frames of %lldx%lld; loaded in %.2f s, first frame after %.3f s, %.1f "
               "frames a second\n",
               arguments.out.c_str(), static_cast<long long>(done),
               static_cast<long long>(stream.width()), static_cast<long long>(stream.height()),
               loaded, first, static_cast<double>(done) / since(start));
}

}  // namespace

// NOLINTNEXTLINE(misc-const-correctness)
int main(int count, char** values) {
  if (count == 2 && std::strcmp(values[1], "--help") == 0) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  keep_memory();
  try {
    make(read(count, values));
    return 0;
  } catch (const livereel::Error& error) {
    std::fprintf(stderr, "livereel-run: %s\n", error.what());
    if (count < 2) std::fputs(kUsage, stderr);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "livereel-run: %s\n", error.what());
    return 1;
  }
}

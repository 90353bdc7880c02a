#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "livereel/livereel.h"
#include "livereel/stream.h"

struct livereel_stream {
  livereel::Stream stream;
  livereel::Chunk chunk;
  std::vector<std::byte> snapshot;
};

namespace {

using livereel::Error;
using livereel::Status;

thread_local std::string last_error;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

livereel_status fail(Status status, const char* what) noexcept {
  try {
    last_error = what;
  } catch (...) {
    last_error.clear();
  }
  return static_cast<livereel_status>(status);
}

// Runs `function`; what it throws becomes a status.
template <typename Function>
livereel_status guarded(Function function) noexcept {
  try {
    function();
    return LIVEREEL_OK;
  } catch (const Error& error) {
    return fail(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(Status::kMemory, "there is too little memory");
  } catch (const std::exception& error) {
    return fail(Status::kInternal, error.what());
  } catch (...) {
    return fail(Status::kInternal, "something unknown was thrown");
  }
}

template <typename... Pointers>
void want(const char* names, Pointers... pointers) {
  if (((pointers == nullptr) || ...)) {
    throw Error(Status::kArgument, std::string("none of these may be null: ") + names);
  }
}

livereel::Embeds embeds_of(const livereel_embeds& given) {
  if (given.file != nullptr) return livereel::read_embeds(given.file);
  constexpr std::int64_t kMost = std::int64_t{1} << 24;
  if (given.values == nullptr || given.tokens < 1 || given.width < 1 || given.tokens > kMost ||
      given.width > kMost / given.tokens) {
    throw Error(Status::kArgument, "the prompt has neither a file nor values of a shape");
  }
  return {.values = {given.values, given.values + (given.tokens * given.width)},
          .tokens = given.tokens,
          .width = given.width};
}

livereel::Options options_of(const livereel_options* given) {
  livereel::Options options;
  if (given == nullptr) return options;
  options.seed = given->seed;
  options.steps = given->steps;
  if (given->unpack_to != nullptr) options.unpack_to = given->unpack_to;
  return options;
}

livereel_chunk view_of(const livereel::Chunk& chunk) {
  return {.frames = chunk.frames.data(),
          .count = chunk.count,
          .height = chunk.height,
          .width = chunk.width,
          .index = chunk.index,
          .pts = chunk.pts};
}

}  // namespace

livereel_status livereel_open(const char* package, const livereel_embeds* prompt,
                              const livereel_options* options, livereel_stream** stream) {
  return guarded([&] {
    want("package, prompt, stream", package, prompt, stream);
    *stream = nullptr;
    *stream = new livereel_stream{
        livereel::Stream(package, embeds_of(*prompt), options_of(options)), {}, {}};
  });
}

livereel_status livereel_restore(const char* package, const uint8_t* snapshot, size_t size,
                                 const livereel_options* options, livereel_stream** stream) {
  return guarded([&] {
    want("package, snapshot, stream", package, snapshot, stream);
    *stream = nullptr;
    const auto bytes = std::as_bytes(std::span(snapshot, size));
    *stream = new livereel_stream{livereel::Stream(package, bytes, options_of(options)), {}, {}};
  });
}

livereel_status livereel_next(livereel_stream* stream, livereel_chunk* chunk) {
  return guarded([&] {
    want("stream, chunk", stream, chunk);
    stream->chunk = stream->stream.next();
    *chunk = view_of(stream->chunk);
  });
}

livereel_status livereel_run(livereel_stream* stream,
                             int (*callback)(const livereel_chunk* chunk, void* user), void* user) {
  return guarded([&] {
    want("stream, callback", stream, callback);
    stream->stream.run([&](const livereel::Chunk& chunk) {
      const livereel_chunk view = view_of(chunk);
      return callback(&view, user) == 0;
    });
  });
}

livereel_status livereel_update(livereel_stream* stream, const livereel_embeds* prompt) {
  return guarded([&] {
    want("stream, prompt", stream, prompt);
    stream->stream.update(embeds_of(*prompt));
  });
}

livereel_status livereel_control(livereel_stream* stream, const livereel_position* track,
                                 int64_t count) {
  return guarded([&] {
    want("stream", stream);
    if (count < 0 || (count > 0 && track == nullptr)) {
      throw Error(Status::kArgument, "the track has neither positions nor a length of 0");
    }
    stream->stream.control({track, static_cast<std::size_t>(count)});
  });
}

livereel_status livereel_snapshot(livereel_stream* stream, const uint8_t** snapshot, size_t* size) {
  return guarded([&] {
    want("stream, snapshot, size", stream, snapshot, size);
    stream->snapshot = stream->stream.snapshot();
    *snapshot = reinterpret_cast<const uint8_t*>(stream->snapshot.data());
    *size = stream->snapshot.size();
  });
}

livereel_status livereel_fps(livereel_stream* stream, double* fps) {
  return guarded([&] {
    want("stream, fps", stream, fps);
    *fps = stream->stream.fps();
  });
}

// NOLINTNEXTLINE(misc-const-correctness)
void livereel_close(livereel_stream* stream) { delete stream; }

const char* livereel_last_error() { return last_error.c_str(); }

/* LiveReel's C interface: endless video from a package that `livereel export --format aoti` wrote.
 *
 * A package compiled for a GPU runs on the process's first one. That was written without a GPU at
 * hand and has never been run.
 *
 * Functions give a livereel_status; livereel_last_error() says in a sentence what went wrong in the
 * calling thread's last call that failed. No exception leaves them. A stream may be used from any
 * thread: livereel_update and livereel_control take hold at the next chunk's edge, the others wait
 * for the chunk in the making. Of livereel_next only one thread at a time may be in a call or use
 * what it gave, and so of livereel_snapshot: the next call writes to the same memory.
 * Whoever closes a stream sees to it that nobody else is in a call on it.
 */
#ifndef LIVEREEL_LIVEREEL_H
#define LIVEREEL_LIVEREEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define LIVEREEL_API
#else
#define LIVEREEL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum livereel_status {
  LIVEREEL_OK = 0,
  LIVEREEL_ARGUMENT = 1, /* a null pointer, a value or a shape that cannot be used */
  LIVEREEL_FILE = 2,     /* what cannot be read or written */
  LIVEREEL_PACKAGE = 3,  /* a damaged package, embedding or snapshot */
  LIVEREEL_VERSION = 4,  /* made for another version, torch, processor or GPU */
  LIVEREEL_MEMORY = 5,   /* memory ran out */
  LIVEREEL_INTERNAL = 6, /* anything else */
} livereel_status;

typedef struct livereel_stream livereel_stream;

/* A prompt's embedding: row-major floats [tokens, width], or, where `file` is not null, a file that
 * `livereel embed` wrote. */
typedef struct livereel_embeds {
  const char* file;
  const float* values;
  int64_t tokens;
  int64_t width;
} livereel_embeds;

/* Zeros are the defaults. `steps` is how many of the model's passes a chunk is given (0: all);
 * graphs are unpacked to a folder in `unpack_to`, which is gone when the stream is open (null: the
 * system's folder for temporary files). */
typedef struct livereel_options {
  uint64_t seed;
  int32_t steps;
  const char* unpack_to;
} livereel_options;

/* Where the object shall be, in shares of the picture's width and height from its upper left
 * corner; open where both are NaN. */
typedef struct livereel_position {
  double x;
  double y;
} livereel_position;

/* RGB frames [count, height, width, 3]; `pts` is the number of the first. The memory is the
 * stream's and stays as it is until the next call of livereel_next or livereel_close. */
typedef struct livereel_chunk {
  const uint8_t* frames;
  int64_t count;
  int64_t height;
  int64_t width;
  int64_t index;
  int64_t pts;
} livereel_chunk;

/* Opens a stream; `options` may be null. */
LIVEREEL_API livereel_status livereel_open(const char* package, const livereel_embeds* prompt,
                                           const livereel_options* options,
                                           livereel_stream** stream);

/* Opens a stream that goes on where livereel_snapshot was called; only `unpack_to` of the options
 * is heeded. */
LIVEREEL_API livereel_status livereel_restore(const char* package, const uint8_t* snapshot,
                                              size_t size, const livereel_options* options,
                                              livereel_stream** stream);

/* Makes the next chunk. One that fails leaves the stream as it was. */
LIVEREEL_API livereel_status livereel_next(livereel_stream* stream, livereel_chunk* chunk);

/* Hands chunks to `callback` until it gives something other than 0. */
LIVEREEL_API livereel_status livereel_run(livereel_stream* stream,
                                          int (*callback)(const livereel_chunk* chunk, void* user),
                                          void* user);

/* Changes the prompt from the next chunk on. */
LIVEREEL_API livereel_status livereel_update(livereel_stream* stream,
                                             const livereel_embeds* prompt);

/* Leads the object of a model that follows control from the next chunk on: `count` positions, one
 * for each frame, the last of which holds on. A single one is come to within a chunk; 0 lets go. */
LIVEREEL_API livereel_status livereel_control(livereel_stream* stream,
                                              const livereel_position* track, int64_t count);

/* All that the next chunk depends on, but for what livereel_update and livereel_control have left
 * for it. The memory is the stream's and stays as it is until the next call of livereel_snapshot or
 * livereel_close. */
LIVEREEL_API livereel_status livereel_snapshot(livereel_stream* stream, const uint8_t** snapshot,
                                               size_t* size);

/* The rate that frames are meant to be shown at. */
LIVEREEL_API livereel_status livereel_fps(livereel_stream* stream, double* fps);

/* Null is allowed. */
LIVEREEL_API void livereel_close(livereel_stream* stream);

/* What went wrong in this thread's last call that failed; never null. */
LIVEREEL_API const char* livereel_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* LIVEREEL_LIVEREEL_H */

/* Streams a package from C: ten chunks, the prompt changed on the way, frames as raw RGB.
 *
 *   stream PACKAGE FIRST.safetensors SECOND.safetensors OUT.rgb
 */
#include <livereel/livereel.h>
#include <stdio.h>

enum { kChunks = 10 };

typedef struct {
  livereel_stream* stream;
  livereel_embeds next_prompt;
  FILE* out;
  int failed;
} Show;

static int show(const livereel_chunk* chunk, void* user) {
  Show* self = user;
  const size_t bytes = (size_t)(chunk->count * chunk->height * chunk->width * 3);
  self->failed = fwrite(chunk->frames, 1, bytes, self->out) != bytes;
  if (chunk->index == kChunks / 2 &&
      livereel_update(self->stream, &self->next_prompt) != LIVEREEL_OK) {
    self->failed = 1;
  }
  return self->failed || chunk->index == kChunks - 1;
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: stream PACKAGE FIRST.safetensors SECOND.safetensors OUT.rgb\n");
    return 2;
  }
  const livereel_embeds first = {.file = argv[2]};
  const livereel_options options = {.seed = 7};
  Show self = {.next_prompt = {.file = argv[3]}, .out = fopen(argv[4], "wb")};
  if (self.out == NULL) {
    perror(argv[4]);
    return 1;
  }
  if (livereel_open(argv[1], &first, &options, &self.stream) != LIVEREEL_OK ||
      livereel_run(self.stream, show, &self) != LIVEREEL_OK) {
    fprintf(stderr, "stream: %s\n", livereel_last_error());
    return 1;
  }
  livereel_close(self.stream);
  if (fclose(self.out) != 0 || self.failed) {
    fprintf(stderr, "stream: %s could not be written\n", argv[4]);
    return 1;
  }
  return 0;
}

// What the C interface refuses: each mistake gives a status and a sentence, and never a crash.
//
//   test_refusals FOLDER, which holds package/ and first.safetensors
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "../check.h"
#include "livereel/livereel.h"
#include "package_files.h"

namespace {

namespace fs = std::filesystem;
using livereel::changed;
using livereel::write_file;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect(livereel_status found, livereel_status wanted) {
  if (found != wanted) {
    std::fprintf(stderr, "status %d, wanted %d: %s\n", found, wanted, livereel_last_error());
    std::exit(1);
  }
  CHECK(wanted == LIVEREEL_OK || std::strlen(livereel_last_error()) > 10);
}

struct Case {
  explicit Case(const fs::path& folder)
      : package((folder / "package").string()), file((folder / "first.safetensors").string()) {
    prompt.file = file.c_str();
  }

  [[nodiscard]] livereel_status open(const livereel_embeds& embeds,
                                     const livereel_options* options = nullptr) const {
    return open_at(package, embeds, options);
  }

  [[nodiscard]] static livereel_status open_at(const std::string& path,
                                               const livereel_embeds& embeds,
                                               const livereel_options* options = nullptr) {
    livereel_stream* stream = nullptr;
    const livereel_status status = livereel_open(path.c_str(), &embeds, options, &stream);
    CHECK((status == LIVEREEL_OK) == (stream != nullptr));
    livereel_close(stream);
    return status;
  }

  std::string package;
  std::string file;
  livereel_embeds prompt{};
};

void null_pointers(const Case& given) {
  livereel_stream* stream = nullptr;
  livereel_chunk chunk{};
  const std::uint8_t* data = nullptr;
  std::size_t size = 0;
  double fps = 0;
  const auto callback = [](const livereel_chunk*, void*) { return 1; };
  expect(livereel_open(nullptr, &given.prompt, nullptr, &stream), LIVEREEL_ARGUMENT);
  expect(livereel_open(given.package.c_str(), nullptr, nullptr, &stream), LIVEREEL_ARGUMENT);
  expect(livereel_open(given.package.c_str(), &given.prompt, nullptr, nullptr), LIVEREEL_ARGUMENT);
  expect(livereel_restore(given.package.c_str(), nullptr, 0, nullptr, &stream), LIVEREEL_ARGUMENT);
  expect(livereel_next(nullptr, &chunk), LIVEREEL_ARGUMENT);
  expect(livereel_run(nullptr, callback, nullptr), LIVEREEL_ARGUMENT);
  expect(livereel_update(nullptr, &given.prompt), LIVEREEL_ARGUMENT);
  expect(livereel_control(nullptr, nullptr, 0), LIVEREEL_ARGUMENT);
  expect(livereel_snapshot(nullptr, &data, &size), LIVEREEL_ARGUMENT);
  expect(livereel_fps(nullptr, &fps), LIVEREEL_ARGUMENT);
  livereel_close(nullptr);
}

void wrong_prompts(const Case& given) {
  const std::vector<float> values(100'000);
  livereel_embeds embeds{};
  expect(given.open(embeds), LIVEREEL_ARGUMENT);
  embeds.values = values.data();
  for (const auto& [tokens, width] : {std::pair<std::int64_t, std::int64_t>{0, 0},
                                      {-1, 12},
                                      {1, 13},
                                      {5000, 12},
                                      {std::int64_t{1} << 40, std::int64_t{1} << 40}}) {
    embeds.tokens = tokens;
    embeds.width = width;
    expect(given.open(embeds), LIVEREEL_ARGUMENT);
  }
  const livereel::TemporaryFolder folder;
  const std::string bad = (folder.path() / "bad.safetensors").string();
  embeds.file = bad.c_str();
  expect(given.open(embeds), LIVEREEL_FILE);
  const std::string whole = read_file(given.file);
  write_file(bad, whole.substr(0, whole.size() / 2));
  expect(given.open(embeds), LIVEREEL_PACKAGE);
}

void wrong_options(const Case& given) {
  livereel_options options{};
  for (const std::int32_t steps : {-1, 1000}) {
    options.steps = steps;
    expect(given.open(given.prompt, &options), LIVEREEL_ARGUMENT);
  }
  options.steps = 0;
  options.unpack_to = "/nonexistent/folder";
  expect(given.open(given.prompt, &options), LIVEREEL_FILE);
  setenv("TMPDIR", given.file.c_str(), 1);
  expect(given.open(given.prompt), LIVEREEL_FILE);
  CHECK(std::strstr(livereel_last_error(), "temporary files") != nullptr);
  unsetenv("TMPDIR");
}

void wrong_packages(const Case& given) {
  const livereel::TemporaryFolder folder;
  const fs::path copy = folder.path() / "package";
  expect(Case::open_at(copy.string(), given.prompt), LIVEREEL_FILE);
  fs::copy(given.package, copy, fs::copy_options::recursive);
  const fs::path manifest = copy / "manifest.json";
  const fs::path weights = copy / "transformer" / "weights.safetensors";
  const std::string text = read_file(manifest), bytes = read_file(weights);
  const auto try_with = [&](const fs::path& path, const std::string& content,
                            livereel_status wanted) {
    const std::string before = read_file(path);
    write_file(path, content);
    expect(Case::open_at(copy.string(), given.prompt), wanted);
    write_file(path, before);
  };
  try_with(weights, bytes.substr(0, bytes.size() - 1), LIVEREEL_PACKAGE);
  std::string flipped = bytes;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  try_with(weights, flipped, LIVEREEL_PACKAGE);
  try_with(weights, "", LIVEREEL_FILE);
  try_with(manifest, text.substr(0, text.size() / 2), LIVEREEL_PACKAGE);
  try_with(manifest, changed(text, "\"manifest\": 1", "\"manifest\": 9"), LIVEREEL_VERSION);
  try_with(manifest, changed(text, "\"torch\": \"2.", "\"torch\": \"1."), LIVEREEL_VERSION);
  try_with(manifest, changed(text, "\"x86_64", "\"x86_99"), LIVEREEL_VERSION);
  try_with(manifest, changed(text, "\"chunk_latents\": 3", "\"chunk_latents\": 2"),
           LIVEREEL_PACKAGE);
  try_with(manifest,
           changed(text, "\"control_channels\"", "\"goal_channels\": 1, \"control_channels\""),
           LIVEREEL_PACKAGE);
  // For another GPU than this machine's, and for that of fake_cuda.cpp, which libtorch does not
  // know.
  const std::string chip =
      text.substr(text.find("x86_64"), text.find('"', text.find("x86_64")) - text.find("x86_64"));
  for (const std::string gpu : {"sm_90", "sm_10"}) {
    try_with(manifest, changed(text, chip, gpu), LIVEREEL_VERSION);
    CHECK(std::strstr(livereel_last_error(), gpu.c_str()) != nullptr);
  }
  try_with(manifest, changed(text, "\"denoise\":", "\"denoised\":"), LIVEREEL_PACKAGE);
  try_with(manifest, changed(text, "\"width\": 48", "\"width\": 8192"), LIVEREEL_PACKAGE);
  try_with(manifest, changed(text, "\"height\": 32", "\"height\": 8192"), LIVEREEL_PACKAGE);
  expect(Case::open_at(copy.string(), given.prompt), LIVEREEL_OK);

  // A manifest that agrees with itself, but not with its graphs, is found out by what they make.
  std::string wider = changed(text, "\"width\": 48", "\"width\": 56");
  for (std::size_t at = 0; (at = wider.find(" 48\n", at)) != std::string::npos; at += 4) {
    wider.replace(at, 4, " 56\n");
  }
  write_file(manifest, wider);
  livereel_stream* stream = nullptr;
  livereel_chunk chunk{};
  expect(livereel_open(copy.c_str(), &given.prompt, nullptr, &stream), LIVEREEL_OK);
  expect(livereel_next(stream, &chunk), LIVEREEL_PACKAGE);
  livereel_close(stream);
}

void wrong_tracks(livereel_stream* stream) {
  const livereel_position inside = {.x = 0, .y = 1};
  expect(livereel_control(stream, &inside, -1), LIVEREEL_ARGUMENT);
  expect(livereel_control(stream, nullptr, 1), LIVEREEL_ARGUMENT);
  const double open = std::numeric_limits<double>::quiet_NaN();
  for (const livereel_position outside :
       {livereel_position{1.5, 0}, {0, -0.1}, {open, 0.5}, {0.5, open}}) {
    expect(livereel_control(stream, &outside, 1), LIVEREEL_ARGUMENT);
  }
  const std::vector<livereel_position> many(100'001, inside);
  expect(livereel_control(stream, many.data(), std::ssize(many)), LIVEREEL_ARGUMENT);
}

void wrong_snapshots(const Case& given) {
  livereel_stream* stream = nullptr;
  expect(livereel_open(given.package.c_str(), &given.prompt, nullptr, &stream), LIVEREEL_OK);
  livereel_chunk chunk{};
  const livereel_position center = {.x = 0.5, .y = 0.5};
  expect(livereel_control(stream, &center, 1), LIVEREEL_OK);
  expect(livereel_next(stream, &chunk), LIVEREEL_OK);
  expect(livereel_next(stream, nullptr), LIVEREEL_ARGUMENT);
  expect(livereel_run(stream, nullptr, nullptr), LIVEREEL_ARGUMENT);
  expect(livereel_update(stream, nullptr), LIVEREEL_ARGUMENT);
  const livereel_embeds none{};
  expect(livereel_update(stream, &none), LIVEREEL_ARGUMENT);
  wrong_tracks(stream);
  const std::uint8_t* data = nullptr;
  std::size_t size = 0;
  expect(livereel_snapshot(stream, &data, nullptr), LIVEREEL_ARGUMENT);
  expect(livereel_snapshot(stream, &data, &size), LIVEREEL_OK);
  const std::string whole(reinterpret_cast<const char*>(data), size);
  livereel_close(stream);

  const auto restore = [&](const std::string& bytes) {
    const std::string odd = "x" + bytes;  // a snapshot may lie at any address
    const auto* const at = reinterpret_cast<const std::uint8_t*>(odd.data()) + 1;
    livereel_stream* restored = nullptr;
    const livereel_status status =
        livereel_restore(given.package.c_str(), at, bytes.size(), nullptr, &restored);
    livereel_close(restored);
    return status;
  };
  expect(restore(whole), LIVEREEL_OK);
  expect(restore(""), LIVEREEL_PACKAGE);
  expect(restore(whole.substr(0, whole.size() - 1)), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, "livereel.runtime 2", "livereel.runtime 1")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("chunk":"1")", R"("chunk":"2")")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("chunk":"1")", R"("chunk":"0")")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("chunk":"1")", R"("chunk":"x")")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("steps":"3")", R"("steps":"9")")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("pts":"1")", R"("pts":"9")")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("track_at":"2")", R"("track_at":"0")")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, "F64", "I64")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, R"("model":")", R"("model":"0)")), LIVEREEL_PACKAGE);
  expect(restore(changed(whole, "cache.3", "cache.x")), LIVEREEL_PACKAGE);
}

}  // namespace

// NOLINTNEXTLINE(misc-const-correctness)
int main(int count, char** values) {
  CHECK(count == 2);
  try {
    const Case given(values[1]);
    null_pointers(given);
    wrong_prompts(given);
    wrong_options(given);
    wrong_packages(given);
    wrong_snapshots(given);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

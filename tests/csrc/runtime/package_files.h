// Writes small packages for tests: files as they should be, to be spoilt one at a time.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <system_error>

#include "../check.h"
#include "sha256.h"

namespace livereel {

// A folder of its own that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "livereel-test-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  TemporaryFolder(TemporaryFolder&&) = delete;
  TemporaryFolder& operator=(TemporaryFolder&&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A manifest of one graph whose file holds `content`.
inline std::string manifest_text(const std::string& content) {
  Sha256 sha;
  sha.update(std::as_bytes(std::span(content)));
  return R"j({"manifest": 1, "format": "aoti", "chips": ["any"],
 "model": {"name": "tiny", "family": "WanTransformer3DModel", "fingerprint": "abc"},
 "versions": {"torch": "2.13.0+cpu"}, "dtype": "float32",
 "stream": {"anchor_every": 1, "anchors": 0, "chunk_latents": 3, "context_noise": 0.0,
  "first_chunk_latents": 1, "fps": 16.0, "guidance_scale": 1.0, "height": 128,
  "max_sequence_length": 16, "shift": 3.0, "sinks": 0, "solver": "euler",
  "timesteps": [1000.0, 375.5], "width": 128, "window": 6},
 "seed": "philox4x32-10 normal(seed, chunk, step)",
 "latent": {"channels": 2, "height": 16, "width": 16, "temporal_factor": 4, "spatial_factor": 8,
  "patch": 2, "past": 3, "decoder_memory": 9, "text_width": 8, "mean": [0, 0.5], "std": [1, 2]},
 "graphs": {"denoise": {"file": "graphs/denoise.pt2",
  "inputs": [{"name": "latent", "dtype": "float32", "shape": [1, 2, 3, 16, 16]}],
  "outputs": [{"name": "flow", "dtype": "float32", "shape": [1, 2, 3, 16, 16]}], "state": {}}},
 "files": {"graphs/denoise.pt2": {"bytes": )j" +
         std::to_string(content.size()) + R"(, "sha256": ")" + sha.finish() + "\"}}}";
}

// `text` with the first `what` made into `with`.
inline std::string changed(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

}  // namespace livereel

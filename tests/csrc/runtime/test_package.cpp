// Opening packages: whole, truncated, tampered with, and for other machines. The only GPU here is
// that of fake_cuda.cpp.
#include <filesystem>
#include <string>

#include "../check.h"
#include "package.h"
#include "package_files.h"
#include "refused.h"

namespace {

namespace fs = std::filesystem;
using livereel::changed;
using livereel::refused;
using livereel::Status;
using livereel::write_file;

}  // namespace

int main() {
  const livereel::TemporaryFolder folder;
  const fs::path graph = folder.path() / "graphs" / "denoise.pt2";
  const fs::path manifest = folder.path() / "manifest.json";
  const std::string content(1000, 'x');
  const std::string text = livereel::manifest_text(content);
  fs::create_directory(graph.parent_path());
  const auto opened = [&](Status status, const char* torch = "2.13.0") {
    return refused(status, [&] { return livereel::open_package(folder.path(), torch); });
  };

  CHECK(opened(Status::kFile));  // there is no manifest
  write_file(manifest, text);
  CHECK(opened(Status::kFile));  // there is no graph
  write_file(graph, content);
  CHECK(livereel::open_package(folder.path(), "2.13.0").manifest.name == "tiny");

  CHECK(opened(Status::kVersion, "2.14.0"));
  const auto for_chips = [&](const std::string& chips) {
    write_file(manifest, changed(text, "[\"any\"]", chips));
  };
  for_chips(R"(["sm_89"])");
  CHECK(opened(Status::kVersion));
  for_chips(R"(["sm_89", "any"])");
  CHECK(!livereel::open_package(folder.path(), "2.13.0").manifest.for_gpu());
  for_chips(R"(["sm_10"])");
  CHECK(livereel::open_package(folder.path(), "2.13.0").manifest.for_gpu());
  for_chips("[]");
  CHECK(opened(Status::kVersion));
  write_file(manifest, changed(text, "[\"any\"]", "[\"x86_64-mmx\"]"));
  CHECK(opened(Status::kVersion));

  write_file(manifest, text);
  write_file(graph, content.substr(1));
  CHECK(opened(Status::kPackage));
  write_file(graph, changed(content, "x", "y"));
  CHECK(opened(Status::kPackage));
  write_file(graph, "");
  CHECK(opened(Status::kFile));
  fs::remove(graph);
  fs::create_directory(graph);
  CHECK(opened(Status::kFile));
  for (std::size_t length = 0; length < text.size(); length += 7) {
    write_file(manifest, text.substr(0, length));
    CHECK(opened(length == 0 ? Status::kFile : Status::kPackage));
  }
  return 0;
}

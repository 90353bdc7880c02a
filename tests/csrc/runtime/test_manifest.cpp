// The manifest reader: one that is right, and values that cannot be.
#include <string>

#include "../check.h"
#include "manifest.h"
#include "package_files.h"
#include "refused.h"

namespace {

using livereel::changed;
using livereel::refused;
using livereel::Status;

void check(Status status, const std::string& what, const std::string& with) {
  const std::string text = changed(livereel::manifest_text("x"), what, with);
  CHECK(refused(status, [&] { return livereel::read_manifest(text); }));
}

}  // namespace

int main() {
  const livereel::Manifest manifest = livereel::read_manifest(livereel::manifest_text("x"));
  CHECK(manifest.stream.window == 6 && manifest.stream.solver == "euler");
  CHECK(manifest.dtype == "float32" && manifest.stream.shift == 3 &&
        manifest.latent.vae_chunk == 0);
  CHECK(manifest.stream.timesteps[1] == 375.5 && manifest.latent.mean[1] == 0.5);
  const livereel::GraphSpec& graph = manifest.graph("denoise");
  CHECK(graph.file == "graphs/denoise.pt2" && graph.inputs[0].shape.size() == 5);
  CHECK(manifest.files.at("graphs/denoise.pt2").bytes == 1);
  CHECK(refused(Status::kPackage, [&] { return manifest.graph("vae_decode"); }));

  CHECK(manifest.stream.control_channels == 0 && !manifest.stream.control_wraps);
  const std::string led = R"("control_channels": 4, "control_wraps": true, "window": 6)";
  const livereel::Manifest follows =
      livereel::read_manifest(changed(livereel::manifest_text("x"), R"("window": 6)", led));
  CHECK(follows.stream.control_channels == 4 && follows.stream.control_wraps);
  CHECK(follows.stream.goal_channels == 0 && follows.stream.told_channels() == 4);
  const livereel::Manifest ends = livereel::read_manifest(changed(
      livereel::manifest_text("x"), R"("window": 6)", R"("goal_channels": 128, "window": 6)"));
  CHECK(ends.stream.goal_channels == 128 && ends.stream.told_channels() == 128);

  check(Status::kPackage, R"("window": 6)", R"("control_channels": 4, "window": 6)");
  check(Status::kPackage, R"("window": 6)",
        R"("control_channels": 65, "control_wraps": true, "window": 6)");
  check(Status::kPackage, R"("window": 6)",
        R"("control_channels": 4, "control_wraps": 1, "window": 6)");
  check(Status::kPackage, R"("window": 6)", R"("goal_channels": 129, "window": 6)");
  check(Status::kPackage, R"("window": 6)", R"("goal_channels": 1.5, "window": 6)");
  check(Status::kVersion, R"("manifest": 1)", R"("manifest": 2)");
  check(Status::kVersion, R"("aoti")", R"("onnx")");
  check(Status::kVersion, "philox4x32-10", "philox4x32-7");
  check(Status::kVersion, R"("dtype": "float32")", R"("dtype": "float8")");
  check(Status::kVersion, R"("euler")", R"("unipc")");
  check(Status::kPackage, R"("shift": 3.0)", R"("shift": 0)");
  check(Status::kPackage, R"("patch": 2)", R"("patch": 2, "temporal_patch": 0)");
  check(Status::kPackage, R"("patch": 2)", R"("patch": 2, "vae_chunk": 0)");
  check(Status::kPackage, R"("guidance_scale": 1.0)", R"("guidance_scale": 500.0)");
  check(Status::kPackage, R"("window": 6)", R"("window": 2)");
  check(Status::kPackage, R"("window": 6)", R"("window": 1e99)");
  check(Status::kPackage, R"("window": 6)", R"("windows": 6)");
  check(Status::kPackage, R"("fps": 16.0)", R"("fps": 0)");
  check(Status::kPackage, "[1000.0, 375.5]", "[375.5, 1000.0]");
  check(Status::kPackage, "[1000.0, 375.5]", "[]");
  check(Status::kPackage, "[0, 0.5]", "[0]");
  check(Status::kPackage, "[1, 2, 3, 16, 16]", "[1099511627776, 2, 3, 16, 16]");
  check(Status::kPackage, "[1, 2, 3, 16, 16]", "[-1]");
  const std::string most(100, 'a');
  const auto with_file = [&](const std::string& path) {
    const std::string spec = R"(": {"bytes": 1, "sha256": ""}, )";
    return changed(livereel::manifest_text("x"), R"("files": {)", R"("files": {")" + path + spec);
  };
  for (const std::string& path :
       {std::string("../x"), std::string("/etc/passwd"), std::string("graphs//x"),
        std::string("graphs/.."), std::string(), std::string("a/"), std::string(".a"),
        std::string("a b"), std::string("a/b/c/d/e"), most + "a", "a/" + most + "a"}) {
    CHECK(refused(Status::kPackage, [&] { return livereel::read_manifest(with_file(path)); }));
  }
  for (const std::string& path : {std::string("a/b/c/d"), "a/" + most}) {
    CHECK(livereel::read_manifest(with_file(path)).files.contains(path));
  }
  check(Status::kPackage, R"("files": {"graphs/denoise.pt2")", R"("files": {"other")");
  return 0;
}

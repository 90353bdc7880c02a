#include "package.h"

#include <string>

#include "file.h"
#include "gpu.h"
#include "livereel/error.h"
#include "sha256.h"

namespace livereel {
namespace {

namespace fs = std::filesystem;

void check_file(const fs::path& path, const FileSpec& wanted) {
  const MappedFile file(path);
  const auto size = static_cast<std::int64_t>(file.bytes().size());
  if (size != wanted.bytes) {
    throw Error(Status::kPackage, path.string() + " has " + std::to_string(size) +
                                      " bytes; the manifest says " + std::to_string(wanted.bytes));
  }
  Sha256 digest;
  digest.update(file.bytes());
  if (digest.finish() != wanted.sha256) {
    throw Error(Status::kPackage, path.string() + " was changed after the export");
  }
}

// Whether this processor has what compilers mean by one of Inductor's instruction sets.
bool has([[maybe_unused]] std::string_view set) {
#ifdef __x86_64__
  if (set == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  }
  if (set == "avx512") {
    return has("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
  if (set == "avx512_vnni") return __builtin_cpu_supports("avx512vnni");
#endif
  return false;
}

// Whether this machine is a `chip`: "any", "x86_64" and instruction sets behind dashes, or a GPU.
bool runs(std::string_view chip, std::string_view gpu) {
  constexpr std::string_view kFamily = "x86_64";
  if (chip == "any" || (!gpu.empty() && chip == gpu)) return true;
  if (!chip.starts_with(kFamily)) return false;
  chip.remove_prefix(kFamily.size());
  while (chip.starts_with('-')) {
    chip.remove_prefix(1);
    const std::string_view set = chip.substr(0, chip.find('-'));
    if (!has(set)) return false;
    chip.remove_prefix(set.size());
  }
  return chip.empty();
}

void check_machine(const Manifest& manifest, std::string_view torch) {
  const auto told = manifest.versions.find("torch");
  const std::string wanted = told == manifest.versions.end() ? "none" : told->second;
  if (wanted.substr(0, wanted.find('+')) != torch) {
    throw Error(Status::kVersion, "the package was compiled for torch " + wanted.substr(0, 40) +
                                      "; this runtime is built with " + std::string(torch));
  }
  const std::string gpu = manifest.for_gpu() ? gpu_chip() : std::string();
  std::string chips;
  for (const std::string& chip : manifest.chips) {
    if (runs(chip, gpu)) return;
    chips += (chips.empty() ? "" : ", ") + chip.substr(0, 40);
  }
  std::string why = ", which this machine is not";
  if (manifest.for_gpu()) {
    why = gpu.empty() ? "; there is no NVIDIA GPU here, or no driver" : "; the GPU here is " + gpu;
  }
  throw Error(Status::kVersion, "the package was compiled for " + chips.substr(0, 200) + why);
}

}  // namespace

Package open_package(const fs::path& folder, std::string_view torch) {
  const fs::path path = folder / "manifest.json";
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() > kMaxManifest) throw Error(Status::kPackage, path.string() + " is too long");
  Package package{folder, {}};
  try {
    package.manifest = read_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    check_machine(package.manifest, torch);
  } catch (const Error& error) {
    throw Error(error.status(), path.string() + ": " + error.what());
  }
  for (const auto& [name, info] : package.manifest.files) check_file(folder / name, info);
  return package;
}

}  // namespace livereel

// A package: the folder that `livereel export --format aoti` writes, opened and checked.
#pragma once

#include <filesystem>
#include <string_view>

#include "manifest.h"

namespace livereel {

// Where a package that is guided has the empty prompt's embedding.
inline constexpr std::string_view kNegative = "negative.safetensors";

struct Package {
  std::filesystem::path folder;
  Manifest manifest;
};

// Opens a package and reads every file once, to compare it with the manifest. Throws Error(kFile)
// for what cannot be read, Error(kVersion) for a package made for another libtorch than `torch`
// ("2.13.0"), another processor than this one or another GPU, and Error(kPackage) for one that is
// damaged.
Package open_package(const std::filesystem::path& folder, std::string_view torch);

}  // namespace livereel

// A libFuzzer target: whatever bytes come, the readers give a value or an Error.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "livereel/error.h"
#include "manifest.h"
#include "safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    livereel::read_manifest({reinterpret_cast<const char*>(data), size});
  } catch (const livereel::Error&) {  // NOLINT(bugprone-empty-catch)
  }
  try {
    livereel::read_safetensors(std::as_bytes(std::span(data, size)));
  } catch (const livereel::Error&) {  // NOLINT(bugprone-empty-catch)
  }
  return 0;
}

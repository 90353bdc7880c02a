#include "gpu.h"

#include <dlfcn.h>

namespace livereel {
namespace {

// Of the driver's C interface, cuda.h.
constexpr int kMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kMinor = 76;
using Init = int(unsigned flags);
using Get = int(int* device, int ordinal);
using GetAttribute = int(int* value, int attribute, int device);

template <typename Function>
Function* find(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

}  // namespace

std::string gpu_chip() {
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return {};
  auto* const init = find<Init>(driver, "cuInit");
  auto* const get = find<Get>(driver, "cuDeviceGet");
  auto* const attribute = find<GetAttribute>(driver, "cuDeviceGetAttribute");
  if (init == nullptr || get == nullptr || attribute == nullptr) return {};
  int device = 0, major = 0, minor = 0;
  if (init(0) != 0 || get(&device, 0) != 0 || attribute(&major, kMajor, device) != 0 ||
      attribute(&minor, kMinor, device) != 0) {
    return {};
  }
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

}  // namespace livereel

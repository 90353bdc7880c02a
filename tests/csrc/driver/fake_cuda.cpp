// NVIDIA's driver as far as csrc/runtime/gpu.cpp asks it: one GPU, an sm_10, which is no real one
// since 2010.
extern "C" {

int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }

int cuDeviceGet(int* device, int ordinal) {
  *device = 7;
  return ordinal == 0 ? 0 : 101;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 1 : 0;
  return device == 7 ? 0 : 101;
}
}

// A tensor as others hand it over: DLPack's structs (dmlc/dlpack, ABI of versions below 1.0, which
// torch and numpy give), declared here so that nothing need be fetched for them.
#pragma once

#include <cstdint>

namespace livereel::dlpack {

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kUint = 1;
constexpr std::uint8_t kFloat = 2;
constexpr std::uint8_t kBfloat = 4;

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in items; null where dense
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

}  // namespace livereel::dlpack

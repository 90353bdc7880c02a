// Memory on the border of a cache line, so that no vector in it crosses one.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace livereel::cpu {

struct AlignedDelete {
  template <typename T>
  void operator()(T* items) const {
    ::operator delete(items, std::align_val_t{64});
  }
};

template <typename T>
using Aligned = std::unique_ptr<T[], AlignedDelete>;

// `count` items that are not set to anything.
template <typename T>
Aligned<T> aligned(std::size_t count) {
  return Aligned<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
}

}  // namespace livereel::cpu

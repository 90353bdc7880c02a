// What the runtime throws: a status that the C interface hands on, and one sentence for people.
#pragma once

#include <stdexcept>
#include <string>

#include "livereel/livereel.h"

namespace livereel {

enum class Status {
  kArgument = LIVEREEL_ARGUMENT,
  kFile = LIVEREEL_FILE,
  kPackage = LIVEREEL_PACKAGE,
  kVersion = LIVEREEL_VERSION,
  kMemory = LIVEREEL_MEMORY,
  kInternal = LIVEREEL_INTERNAL,
};

class LIVEREEL_API Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& what) : std::runtime_error(what), status_(status) {}

  [[nodiscard]] Status status() const noexcept { return status_; }

 private:
  Status status_;
};

}  // namespace livereel

// What the runtime throws: a status that the C interface hands on, and one sentence for people.
#pragma once

#include <stdexcept>
#include <string>

namespace livereel {

// Numbered as `livereel_status` in livereel.h.
enum class Status : int {
  kOk = 0,
  kEnd = 1,
  kArgument = 2,
  kFile = 3,
  kPackage = 4,
  kVersion = 5,
  kMemory = 6,
  kInternal = 7,
};

class Error : public std::runtime_error {
 public:
  Error(Status status, const std::string& what) : std::runtime_error(what), status_(status) {}

  [[nodiscard]] Status status() const noexcept { return status_; }

 private:
  Status status_;
};

}  // namespace livereel

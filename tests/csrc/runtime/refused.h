// refused(status, function): whether the function throws an Error of that status.
#pragma once

#include "livereel/error.h"

namespace livereel {

template <typename Function>
bool refused(Status status, Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.status() == status && error.what()[0] != '\0';
  }
  return false;
}

}  // namespace livereel

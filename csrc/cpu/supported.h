// Whether this build and this processor can run the kernels of this folder.
#pragma once

namespace livereel::cpu {

bool supported();

}  // namespace livereel::cpu

// What GPU there is, asked of NVIDIA's driver: nothing of CUDA is needed to compile this or run it.
#pragma once

#include <string>

namespace livereel {

// The first GPU's compute capability as packages name chips ("sm_90"); empty where there is none,
// or no driver.
std::string gpu_chip();

}  // namespace livereel

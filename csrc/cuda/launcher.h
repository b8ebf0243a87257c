// The CUDA driver and NVRTC, found while the program runs: nothing of CUDA is needed to build.
//
// Where images are looked for and kept is in masktuning/ops/cuda_images.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace masktuning {

struct Compiled {
  std::string cubin, ptx, log;
};

// Compiles `source` for `arch` (such as "sm_70") with the NVRTC at `library`; `headers` by the name
// that an #include gives. Throws std::runtime_error with the compiler's log.
Compiled nvrtc_compile(const std::string& library, const std::string& name,
                       const std::string& source,
                       const std::map<std::string, std::string>& headers, const std::string& arch);

// Loads a cubin into the primary context of a device and returns the module; allowed during a graph
// capture. Throws std::runtime_error where the driver refuses it.
uint64_t cuda_load(int device, const std::string& cubin);

// The kernel `name` of a module of that device.
uint64_t cuda_function(int device, uint64_t module, const std::string& name);

// Launches a kernel whose one argument is the struct in `arguments`, on a stream of that device.
void cuda_launch(int device, uint64_t function, unsigned grid_x, unsigned grid_y, unsigned threads,
                 uint64_t stream, const std::string& arguments);

}  // namespace masktuning

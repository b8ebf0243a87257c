// The CUDA driver and NVRTC. Both are looked for when the program runs, so that building needs no part
// of CUDA. masktuning/ops/backends/cubins.py says where cubins are looked for and kept.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace masktuning {

struct Compiled {
  std::string cubin, ptx, log;
};

// Compiles `source` for `arch` (such as "sm_70") with the NVRTC at `library`. `headers` maps the names
// that #include directives use to texts. Throws std::runtime_error with the compiler's log.
Compiled nvrtc_compile(const std::string& library, const std::string& name,
                       const std::string& source,
                       const std::map<std::string, std::string>& headers, const std::string& arch);

// Loads a cubin into the primary context of a device and returns the module. This is allowed during a
// graph capture. Throws std::runtime_error if the driver refuses the cubin.
uint64_t cuda_load(int device, const std::string& cubin);

// The kernel `name` of a module that was loaded on `device`.
uint64_t cuda_function(int device, uint64_t module, const std::string& name);

// Launches a kernel, whose only argument is the struct in `arguments`, on a stream of `device`.
void cuda_launch(int device, uint64_t function, unsigned grid_x, unsigned grid_y, unsigned threads,
                 uint64_t stream, const std::string& arguments);

}  // namespace masktuning

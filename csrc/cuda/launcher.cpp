#include "launcher.h"

#include <dlfcn.h>

#include <mutex>
#include <stdexcept>
#include <vector>

namespace masktuning {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

void* open_library(const std::string& name) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail("cannot load " + name + ": " + dlerror());
  return library;
}

template <typename F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (function == nullptr) fail(std::string("no function ") + name + " in the CUDA library");
}

// The functions of the driver with the types of its ABI: handles are pointers, devices and results
// are ints.
struct Driver {
  int (*init)(unsigned);
  int (*error)(int, const char**);
  int (*device)(int*, int);
  int (*retain)(void**, int);
  int (*push)(void*);
  int (*pop)(void**);
  int (*load)(void**, const void*);
  int (*function)(void**, void*, const char*);
  int (*capture_mode)(int*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                void**, void**);

  Driver() {
    void* library = open_library("libcuda.so.1");
    find(library, "cuInit", init);
    find(library, "cuGetErrorString", error);
    find(library, "cuDeviceGet", device);
    find(library, "cuDevicePrimaryCtxRetain", retain);
    find(library, "cuCtxPushCurrent_v2", push);
    find(library, "cuCtxPopCurrent_v2", pop);
    find(library, "cuModuleLoadData", load);
    find(library, "cuModuleGetFunction", function);
    find(library, "cuThreadExchangeStreamCaptureMode", capture_mode);
    find(library, "cuLaunchKernel", launch);
    check(init(0), "cuInit");
  }

  void check(int result, const char* call) const {
    if (result == 0) return;
    const char* text = nullptr;
    error(result, &text);
    fail(std::string(call) + ": " + (text ? text : "unknown error") + " (" + std::to_string(result) +
         ")");
  }
};

const Driver& driver() {
  static const Driver instance;
  return instance;
}

// The primary context of a device, which PyTorch uses too. It is retained once and kept.
void* primary_context(int device) {
  static std::mutex mutex;
  static std::map<int, void*> contexts;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = contexts.find(device);
  if (found != contexts.end()) return found->second;
  int handle = 0;
  void* context = nullptr;
  driver().check(driver().device(&handle, device), "cuDeviceGet");
  driver().check(driver().retain(&context, handle), "cuDevicePrimaryCtxRetain");
  contexts[device] = context;
  return context;
}

// Makes the context of a device the current one for a while. The threads of autograd may have no
// current context, or that of another device.
class CurrentContext {
 public:
  explicit CurrentContext(int device) {
    driver().check(driver().push(primary_context(device)), "cuCtxPushCurrent");
  }
  ~CurrentContext() {
    void* popped = nullptr;
    driver().pop(&popped);
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
};

// The functions of NVRTC; a program is a pointer.
struct Nvrtc {
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(void*, int, const char* const*);
  int (*destroy)(void**);
  int (*cubin_size)(void*, size_t*);
  int (*cubin)(void*, char*);
  int (*ptx_size)(void*, size_t*);
  int (*ptx)(void*, char*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);

  explicit Nvrtc(const std::string& path) {
    void* library = open_library(path);
    find(library, "nvrtcCreateProgram", create);
    find(library, "nvrtcCompileProgram", compile);
    find(library, "nvrtcDestroyProgram", destroy);
    find(library, "nvrtcGetCUBINSize", cubin_size);
    find(library, "nvrtcGetCUBIN", cubin);
    find(library, "nvrtcGetPTXSize", ptx_size);
    find(library, "nvrtcGetPTX", ptx);
    find(library, "nvrtcGetProgramLogSize", log_size);
    find(library, "nvrtcGetProgramLog", log);
  }

  static std::string take(void* program, int (*size)(void*, size_t*), int (*get)(void*, char*)) {
    size_t bytes = 0;
    if (size(program, &bytes) != 0 || bytes == 0) return "";
    std::string text(bytes, '\0');
    return get(program, &text[0]) == 0 ? text : "";
  }
};

}  // namespace

Compiled nvrtc_compile(const std::string& library, const std::string& name,
                       const std::string& source,
                       const std::map<std::string, std::string>& headers,
                       const std::string& arch) {
  const Nvrtc nvrtc(library);
  std::vector<const char*> names, texts;
  for (const auto& header : headers) {
    names.push_back(header.first.c_str());
    texts.push_back(header.second.c_str());
  }
  void* program = nullptr;
  if (nvrtc.create(&program, source.c_str(), name.c_str(), static_cast<int>(headers.size()),
                   texts.data(), names.data()) != 0) {
    fail("nvrtcCreateProgram failed");
  }
  const std::string architecture = "--gpu-architecture=" + arch;
  // With -v the log holds the registers, stack and spills of each kernel.
  const char* options[] = {architecture.c_str(), "--std=c++17", "--ptxas-options=-v"};
  const int result = nvrtc.compile(program, 3, options);
  Compiled compiled;
  compiled.log = Nvrtc::take(program, nvrtc.log_size, nvrtc.log);
  if (result == 0) {
    compiled.cubin = Nvrtc::take(program, nvrtc.cubin_size, nvrtc.cubin);
    compiled.ptx = Nvrtc::take(program, nvrtc.ptx_size, nvrtc.ptx);
  }
  nvrtc.destroy(&program);
  if (compiled.cubin.empty()) fail("NVRTC cannot compile " + name + " for " + arch + ":\n" + compiled.log);
  return compiled;
}

uint64_t cuda_load(int device, const std::string& cubin) {
  const CurrentContext current(device);
  constexpr int kRelaxed = 2;  // a stream may be captured now, and loading is not an operation of it
  int mode = kRelaxed;
  driver().check(driver().capture_mode(&mode), "cuThreadExchangeStreamCaptureMode");
  void* module = nullptr;
  const int result = driver().load(&module, cubin.data());
  driver().capture_mode(&mode);
  driver().check(result, "cuModuleLoadData");
  return reinterpret_cast<uint64_t>(module);
}

uint64_t cuda_function(int device, uint64_t module, const std::string& name) {
  const CurrentContext current(device);
  int mode = 2;  // relaxed, as above: the driver may load the kernel's code now
  driver().check(driver().capture_mode(&mode), "cuThreadExchangeStreamCaptureMode");
  void* function = nullptr;
  const int result = driver().function(&function, reinterpret_cast<void*>(module), name.c_str());
  driver().capture_mode(&mode);
  driver().check(result, ("cuModuleGetFunction " + name).c_str());
  return reinterpret_cast<uint64_t>(function);
}

void cuda_launch(int device, uint64_t function, unsigned grid_x, unsigned grid_y, unsigned threads,
                 uint64_t stream, const std::string& arguments) {
  const CurrentContext current(device);
  size_t bytes = arguments.size();
  // CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END
  void* extra[] = {reinterpret_cast<void*>(1), const_cast<char*>(arguments.data()),
                   reinterpret_cast<void*>(2), &bytes, nullptr};
  driver().check(driver().launch(reinterpret_cast<void*>(function), grid_x, grid_y, 1, threads, 1, 1,
                                 0, reinterpret_cast<void*>(stream), nullptr, extra),
                 "cuLaunchKernel");
}

}  // namespace masktuning

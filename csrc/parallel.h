// Splits a loop over rows among threads: those of the OpenMP runtime that the process has loaded
// (PyTorch's), or else threads that live for the call. PyTorch's threads keep their cores busy while
// they wait after each of its own loops, and new threads would have to share the cores with them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace masktuning {

using OpenMPParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// GOMP_parallel(function, data, threads, flags) of the loaded OpenMP runtime, or null.
inline OpenMPParallel loaded_openmp() {
#if defined(__linux__)
  static const auto found = reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#else
  return nullptr;
#endif
}

// Calls body(begin, end) on slices of [0, rows). Each thread takes the next slice when it is ready, so
// a thread that the system starts late, or that shares its core, does not hold up the others.
// `work_per_row` is in tokens or logits. With less than kMinWork in total the loop stays on the calling
// thread, because starting a thread costs some 20 us.
//
// PyTorch sets the number of threads to 1 in a forked data loader worker, so none is started there.
template <typename Body>
void parallel_rows(int64_t rows, int64_t work_per_row, int threads, const Body& body) {
  constexpr int64_t kMinWork = 32768;
  const int64_t by_work = std::max<int64_t>(1, rows * work_per_row / kMinWork);
  const int64_t workers = std::min<int64_t>({rows, by_work, std::max(threads, 1)});
  if (workers <= 1) {
    body(int64_t{0}, rows);
    return;
  }
  const int64_t slice = std::max<int64_t>(1, rows / (8 * workers));
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> errors(workers);
  auto run = [&](int64_t worker) {
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(slice);
        if (begin >= rows) return;
        body(begin, std::min(begin + slice, rows));
      }
    } catch (...) {
      errors[worker] = std::current_exception();  // rethrown below, on the calling thread
    }
  };
  if (const OpenMPParallel openmp = loaded_openmp()) {
    std::atomic<int64_t> entered{0};
    auto member = [&] { run(entered.fetch_add(1)); };
    openmp([](void* data) { (*static_cast<decltype(member)*>(data))(); }, &member,
           static_cast<unsigned>(workers), 0);
  } else {
    std::vector<std::thread> pool;
    for (int64_t worker = 1; worker < workers; ++worker) pool.emplace_back(run, worker);
    run(0);
    for (auto& thread : pool) thread.join();
  }
  for (auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace masktuning

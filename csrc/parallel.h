// Splits a loop over rows among threads that live only for the call: no pool, so a forked data
// loader worker never meets threads that its parent had.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace masktuning {

// Calls body(begin, end) on slices of [0, rows). `work_per_row` is in tokens or logits; below
// kMinWork in all the loop stays on the calling thread, since starting a thread costs some 20 us.
template <typename Body>
void parallel_rows(int64_t rows, int64_t work_per_row, int threads, const Body& body) {
  constexpr int64_t kMinWork = 32768;
  const int64_t by_work = std::max<int64_t>(1, rows * work_per_row / kMinWork);
  const int64_t slices = std::min<int64_t>({rows, by_work, std::max(threads, 1)});
  if (slices <= 1) {
    body(int64_t{0}, rows);
    return;
  }
  std::vector<std::exception_ptr> errors(slices);
  std::vector<std::thread> pool;
  auto run = [&](int64_t slice) {
    try {
      body(rows * slice / slices, rows * (slice + 1) / slices);
    } catch (...) {
      errors[slice] = std::current_exception();  // rethrown below, on the calling thread
    }
  };
  for (int64_t slice = 1; slice < slices; ++slice) pool.emplace_back(run, slice);
  run(0);
  for (auto& thread : pool) thread.join();
  for (auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace masktuning

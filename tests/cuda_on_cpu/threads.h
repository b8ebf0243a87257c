// The threads of a CUDA block as fibers of one CPU thread: they switch at barriers and in warp
// operations, in an order drawn anew at each, so that a kernel that misses a barrier gives a wrong
// result sooner or later, and one whose threads wait for different things is found out.
#pragma once

#include <cstring>
#include <functional>

namespace cuda_on_cpu {

struct Index {
  unsigned x, y, z;
};

struct Fiber {
  Index thread, block;
  int lane;
  unsigned warp_operations;
};

Fiber& current();
void wait_for_block();
void wait_for_warp();
// 64 bits for each lane of the running fiber's warp, of its next or last warp operation by parity.
unsigned long long* warp_slots(unsigned parity);

template <typename T, typename From>
T exchange(T value, From from) {
  const unsigned parity = current().warp_operations++ % 2;
  std::memcpy(&warp_slots(parity)[current().lane], &value, sizeof(T));
  wait_for_warp();
  T other;
  // A lane is at most one operation ahead, and then writes to the other parity's slots.
  std::memcpy(&other, &warp_slots(parity)[from(current().lane)], sizeof(T));
  return other;
}

}  // namespace cuda_on_cpu

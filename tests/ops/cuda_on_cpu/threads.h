// The threads of a CUDA block as fibers of one CPU thread. They switch at barriers and in warp
// operations, in an order drawn anew at each, and sometimes a fiber is held up just before it reads
// or writes shared memory until no other fiber can go on. A kernel that misses a barrier is found in
// two ways: its result is wrong in such an order, and accesses.cpp sees two warps use the same word
// between two barriers. A kernel whose threads wait for different things is found, too.
#pragma once

#include <cstring>
#include <functional>

namespace cuda_on_cpu {

struct Index {
  unsigned x, y, z;
};

struct Fiber {
  Index thread, block, grid;
  int lane;
  unsigned warp_operations;
};

Fiber& current();
void wait_for_block();
void wait_for_warp();
void hold_up();             // lets every other fiber of the block go as far as it can
bool chance(unsigned one_in);  // drawn from the seed of the run
void draw_hold_ups();  // accesses.cpp: at a block's start, how often fibers are held up in it
// accesses.cpp: forgets what it has seen, at a block's start and after each of its barriers.
void forget_accesses();
bool race_seen();  // since the last call
// What an atomic operation does to the word at `address`, which no other atomic one can disturb.
void note_atomic(const void* address);
// 64 bits for each lane of the running fiber's warp, of its next or last warp operation by parity.
unsigned long long* warp_slots(unsigned parity);

// Hands `value` to the other lanes of the warp, and returns what `read` makes of all lanes' values.
template <typename T, typename Read>
auto exchange_all(T value, Read read) {
  unsigned long long* lanes = warp_slots(current().warp_operations++ % 2);
  std::memcpy(&lanes[current().lane], &value, sizeof(T));
  wait_for_warp();
  // A lane is at most one operation ahead, and then writes to the other parity's slots.
  return read(lanes);
}

template <typename T, typename From>
T exchange(T value, From from) {
  return exchange_all(value, [&](const unsigned long long* lanes) {
    T other;
    std::memcpy(&other, &lanes[from(current().lane)], sizeof(T));
    return other;
  });
}

}  // namespace cuda_on_cpu

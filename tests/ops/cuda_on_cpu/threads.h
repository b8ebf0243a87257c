// The threads of a CUDA block as fibers of one CPU thread. They switch at barriers and in warp
// operations, in an order that is drawn again each time. Sometimes a fiber is held up just before it
// reads or writes shared memory, until no other fiber can continue. A missing barrier is found in two
// ways: the result is wrong in such an order, and accesses.cpp sees two warps use the same word between
// two barriers. A kernel whose threads wait for different things is found, too.
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
void hold_up();             // lets all other fibers of the block continue as far as they can
bool chance(unsigned one_in);  // drawn from the seed of the run
void draw_hold_ups();  // accesses.cpp: called at the start of a block, draws how often fibers are held up
// accesses.cpp: called at the start of a block and after each barrier, forgets the accesses so far.
void forget_accesses();
bool race_seen();  // since the last call
// Notes an atomic operation on the word at `address`. It cannot race with another atomic one.
void note_atomic(const void* address);
// 64 bits for each lane of the warp of the running fiber. Successive warp operations alternate between
// two arrays of them, by `parity`.
unsigned long long* warp_slots(unsigned parity);

// Gives `value` to the other lanes of the warp, and returns what `read` computes from all values.
template <typename T, typename Read>
auto exchange_all(T value, Read read) {
  unsigned long long* lanes = warp_slots(current().warp_operations++ % 2);
  std::memcpy(&lanes[current().lane], &value, sizeof(T));
  wait_for_warp();
  // A lane is at most one operation ahead, and then it writes to the other array.
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

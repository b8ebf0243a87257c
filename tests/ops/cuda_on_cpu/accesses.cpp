// Watches what a kernel does to shared memory. The compiler's thread sanitizer puts a call before
// every access of the kernels' code; these are our own definitions of those calls.
//
// Between two barriers of a block, its warps run in any order. If one warp writes a word that another
// one reads or writes there, this is a race, whatever the result was this time. Two atomic operations
// on a word are not. Races between the lanes of one warp are not looked for.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "threads.h"

// The kernels' __shared__ variables are static, so they lie between these two of the linker's.
extern "C" {
extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace cuda_on_cpu {
namespace {

// One in so many accesses holds up its fiber; the number is drawn again for each block. A warp needs all
// of its lanes to continue, so only rare hold-ups let one warp run far ahead of another.
unsigned hold_up_one_in = 1024;
enum class Kind { kRead, kWrite, kAtomic };

// The warps, one bit each, that have used a word of shared memory since the last barrier.
struct Word {
  uint32_t reads, writes, atomics;
};
std::vector<Word> words;
bool raced;

void use(const void* address, size_t bytes, Kind kind) {
  const char* first = static_cast<const char*>(address);
  if (first < __bss_start || first >= _end) return;
  if (chance(hold_up_one_in)) hold_up();
  words.resize((_end - __bss_start) / 4 + 1);
  const uint32_t mine = 1u << (current().thread.x / 32);
  for (size_t w = (first - __bss_start) / 4; w <= (first + bytes - 1 - __bss_start) / 4; ++w) {
    Word& word = words[w];
    uint32_t others = word.writes;
    if (kind != Kind::kAtomic) others |= word.atomics;
    if (kind != Kind::kRead) others |= word.reads;
    if ((others & ~mine) != 0 && !raced) {
      raced = true;
      std::fprintf(stderr, "race for shared memory: word %zu, thread %u\n", w, current().thread.x);
    }
    (kind == Kind::kRead ? word.reads : kind == Kind::kWrite ? word.writes : word.atomics) |= mine;
  }
}

}  // namespace

void note_atomic(const void* address) { use(address, 4, Kind::kAtomic); }
void draw_hold_ups() {
  hold_up_one_in = 64;
  while (hold_up_one_in < 65536 && !chance(4)) hold_up_one_in *= 4;
}
void forget_accesses() { words.assign(words.size(), Word{}); }
bool race_seen() {
  const bool seen = raced;
  raced = false;
  return seen;
}

}  // namespace cuda_on_cpu

#define MT_ACCESS(SIZE)                                                                    \
  void __tsan_read##SIZE(void* p) { use(p, SIZE, Kind::kRead); }                           \
  void __tsan_write##SIZE(void* p) { use(p, SIZE, Kind::kWrite); }                         \
  void __tsan_unaligned_read##SIZE(void* p) { use(p, SIZE, Kind::kRead); }                 \
  void __tsan_unaligned_write##SIZE(void* p) { use(p, SIZE, Kind::kWrite); }
extern "C" {
using namespace cuda_on_cpu;
MT_ACCESS(1)
MT_ACCESS(2)
MT_ACCESS(4)
MT_ACCESS(8)
MT_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { use(p, bytes, Kind::kRead); }
void __tsan_write_range(void* p, size_t bytes) { use(p, bytes, Kind::kWrite); }
void __tsan_init() {}
}

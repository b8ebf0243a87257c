// Runs the blocks of a grid one after the other; see threads.h.
#include "threads.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

namespace cuda_on_cpu {
namespace {

constexpr size_t kStack = 128 * 1024;
enum class State { kReady, kHeldUp, kAtBlock, kAtWarp, kDone };

// A fiber is started by setcontext. Later switches use _longjmp, which makes no system call.
struct Thread : Fiber {
  State state;
  bool started;
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
};

std::vector<std::unique_ptr<Thread>> threads;
std::vector<unsigned long long> slots[2];
Thread* running;
jmp_buf scheduler;
std::function<void()> body;
std::mt19937 order;

void leave(State state) {
  running->state = state;
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

// Runs a fiber until it leaves.
void resume(Thread& thread) {
  running = &thread;
  if (_setjmp(scheduler) != 0) return;
  if (thread.started) _longjmp(thread.place, 1);
  thread.started = true;
  setcontext(&thread.context);
}

void enter() {
  body();
  leave(State::kDone);
}

// Makes those fibers ready whose condition has come true. Returns false if no fiber can continue.
bool release(unsigned n) {
  bool any = false;
  for (unsigned warp = 0; warp < n; warp += 32) {
    const unsigned end = std::min(n, warp + 32);
    bool all = true;
    for (unsigned t = warp; t < end; ++t) all &= threads[t]->state == State::kAtWarp;
    for (unsigned t = warp; all && t < end; ++t) threads[t]->state = State::kReady;
    any |= all;
  }
  if (any) return true;
  for (unsigned t = 0; t < n; ++t) {  // when all others have continued as far as they can
    if (threads[t]->state != State::kHeldUp) continue;
    threads[t]->state = State::kReady;
    any = true;
  }
  if (any) return true;
  for (unsigned t = 0; t < n; ++t) {
    if (threads[t]->state != State::kAtBlock && threads[t]->state != State::kDone) return false;
  }
  for (unsigned t = 0; t < n; ++t) {
    if (threads[t]->state == State::kAtBlock) {
      threads[t]->state = State::kReady;
      any = true;
    }
  }
  forget_accesses();
  return any;
}

// Returns false if threads wait for each other, or for threads that have ended.
bool run_block(Index block, Index grid, unsigned n) {
  for (unsigned t = 0; t < n; ++t) {
    Thread& thread = *threads[t];
    thread.thread = {t, 0, 0};
    thread.block = block;
    thread.grid = grid;
    thread.lane = static_cast<int>(t % 32);
    thread.warp_operations = 0;
    thread.state = State::kReady;
    thread.started = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  forget_accesses();
  draw_hold_ups();
  std::vector<unsigned> turns(n);
  for (unsigned t = 0; t < n; ++t) turns[t] = t;
  do {
    std::shuffle(turns.begin(), turns.end(), order);
    for (const unsigned t : turns) {
      if (threads[t]->state == State::kReady) resume(*threads[t]);
    }
  } while (release(n));
  for (unsigned t = 0; t < n; ++t) {
    if (threads[t]->state != State::kDone) return false;
  }
  return true;
}

struct Arguments {
  alignas(8) char bytes[512];
};

}  // namespace

Fiber& current() { return *running; }
void wait_for_block() { leave(State::kAtBlock); }
void wait_for_warp() { leave(State::kAtWarp); }
void hold_up() { leave(State::kHeldUp); }
bool chance(unsigned one_in) { return order() % one_in == 0; }
unsigned long long* warp_slots(unsigned parity) {
  return &slots[parity][running->thread.x / 32 * 32];
}

}  // namespace cuda_on_cpu

// Runs the kernel `name` of this library. Returns 0, or 1 if there is no such kernel, 2 for a deadlock, 3
// if two warps raced for a word of shared memory.
extern "C" int run_kernel(const char* name, unsigned grid_x, unsigned grid_y, unsigned n,
                          const char* bytes, size_t size, unsigned seed) {
  using namespace cuda_on_cpu;
  Dl_info own;  // each .cu file is a separate library, and none is global
  dladdr(reinterpret_cast<void*>(&run_kernel), &own);
  void* library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  // A struct of more than 16 bytes is passed in memory, so this longer one can stand for any.
  auto kernel = reinterpret_cast<void (*)(Arguments)>(dlsym(library, name));
  if (kernel == nullptr || size > sizeof(Arguments)) return 1;
  Arguments arguments;
  std::memcpy(arguments.bytes, bytes, size);
  while (threads.size() < n) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->stack = std::make_unique<char[]>(kStack);
  }
  for (auto& parity : slots) parity.assign((n + 31) / 32 * 32, 0);
  order.seed(seed);
  body = [&] { kernel(arguments); };
  for (unsigned y = 0; y < grid_y; ++y) {
    for (unsigned x = 0; x < grid_x; ++x) {
      if (!run_block({x, y, 0}, {grid_x, grid_y, 1}, n)) return 2;
    }
  }
  return race_seen() ? 3 : 0;
}

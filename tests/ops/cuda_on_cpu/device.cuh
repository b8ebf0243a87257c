// Takes the place of csrc/cuda/device.cuh, so that a CPU can run the kernels: the same names in C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"
#include "threads.h"

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other
#define threadIdx (cuda_on_cpu::current().thread)
#define blockIdx (cuda_on_cpu::current().block)
#define gridDim (cuda_on_cpu::current().grid)
#define __syncthreads() cuda_on_cpu::wait_for_block()
#define __syncwarp() cuda_on_cpu::wait_for_warp()

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdividef(float a, float b) { return a / b; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// Not watched as a read and a write: only one thread runs at a time, and it is not held up in here.
template <typename T>
__attribute__((no_sanitize_thread, noinline)) T atomicAdd(T* address, T value) {
  cuda_on_cpu::note_atomic(address);
  const T before = *address;
  *address += value;
  return before;
}
__attribute__((no_sanitize_thread, noinline)) inline unsigned atomicOr(unsigned* address,
                                                                       unsigned value) {
  cuda_on_cpu::note_atomic(address);
  const unsigned before = *address;
  *address |= value;
  return before;
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_on_cpu::exchange(value, [=](int) { return lane; });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_cpu::exchange(value, [=](int lane) { return lane ^ mask; });
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  return cuda_on_cpu::exchange(value, [=](int lane) { return lane < delta ? lane : lane - delta; });
}
inline unsigned __ballot_sync(unsigned, bool value) {
  return cuda_on_cpu::exchange_all(value, [](const unsigned long long* lanes) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= (lanes[lane] & 1u) != 0 ? 1u << lane : 0u;
    return votes;
  });
}

namespace masktuning {

typedef long long i64;
typedef unsigned short u16;

constexpr int kWarp = 32;
constexpr u32 kAllLanes = 0xffffffffu;
#define MT_INFINITY __uint_as_float(0x7f800000u)
#define MT_NAN __uint_as_float(0x7fffffffu)
#define MT_LARGEST __uint_as_float(0x7f7fffffu)
constexpr float kLog2e = 1.44269504f;

struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

inline void forget(u32&) {}
inline void load_words(u32 (&words)[4], const void* source, bool wanted, u32 otherwise) {
  for (int w = 0; w < 4; ++w) words[w] = wanted ? static_cast<const u32*>(source)[w] : otherwise;
}
inline void store_words(void* target, u32 a, u32 b, u32 c, u32 d) {
  const u32 words[4] = {a, b, c, d};
  std::memcpy(target, words, 16);
}
inline void store_word(void* target, u32 a) { std::memcpy(target, &a, 4); }
inline void store_half_word(void* target, u16 a) { std::memcpy(target, &a, 2); }
inline i64 load_early(const i64* source) { return *source; }
inline float fast_exp2(float x) { return std::exp2(x); }

// The conversions of the compiler, not those of csrc/half.h, so that an error in either is found.
inline float half_to_float(u32 bits) {
  const u16 narrow = static_cast<u16>(bits);
  _Float16 half;
  std::memcpy(&half, &narrow, 2);
  return static_cast<float>(half);
}

inline u32 half_bits(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  u16 bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

inline u32 pack_half2(float low, float high) { return half_bits(low) | half_bits(high) << 16; }

inline u32 bfloat_bits(float x) {
  const u32 bits = __float_as_uint(x);
  return x != x ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline u32 pack_bfloat2(float low, float high) { return bfloat_bits(low) | bfloat_bits(high) << 16; }

}  // namespace masktuning

// What the kernels need of the processor: types, 16-bit floats, the fast exponential.
// No system header is included anywhere under csrc/cuda, because NVRTC finds none.
#pragma once

#include "philox.h"

namespace masktuning {

typedef long long i64;
typedef unsigned short u16;

constexpr int kWarp = 32;
constexpr u32 kAllLanes = 0xffffffffu;
#define MT_INFINITY __uint_as_float(0x7f800000u)
#define MT_NAN __uint_as_float(0x7fffffffu)

// The element types of logits, as bits.
struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

// Makes the compiler forget what it has worked out from a word, rather than keep it in a register.
__device__ __forceinline__ void forget(u32& word) { asm volatile("" : "+r"(word)); }

// 2^x, within 2 ulp; a result below 2^-126 is 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float half_to_float(u32 bits) {
  float x;
  asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "r"(bits));
  return x;
}

// Two floats as 16-bit ones in a word, the first in its low half, rounded to nearest even.
__device__ __forceinline__ u32 pack_half2(float low, float high) {
  u32 word;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(word) : "f"(low), "f"(high));
#else
  asm("{ .reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h}; }"
      : "=r"(word)
      : "f"(low), "f"(high));
#endif
  return word;
}

__device__ __forceinline__ u32 pack_bfloat2(float low, float high) {
#if __CUDA_ARCH__ >= 800
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(word) : "f"(low), "f"(high));
  return word;
#else
  const u32 a = __float_as_uint(low), b = __float_as_uint(high);
  const u32 x = low != low ? 0x7fc0u : (a + 0x7fffu + ((a >> 16) & 1u)) >> 16;
  const u32 y = high != high ? 0x7fc0u : (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return x | (y << 16);
#endif
}

}  // namespace masktuning

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
#define MT_LARGEST __uint_as_float(0x7f7fffffu)  // of the finite floats
constexpr float kLog2e = 1.44269504f;

// The element types of logits, as bits.
struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

// Makes the compiler forget what it has worked out from a word, rather than keep it in a register.
__device__ __forceinline__ void forget(u32& word) { asm volatile("" : "+r"(word)); }

// The four words at `source`, or four times `otherwise` where they are not wanted. The statement is
// volatile so that the compiler keeps several of these together and ahead of what uses them: all of
// a row's loads are then under way at once.
__device__ __forceinline__ void load_words(u32 (&words)[4], const void* source, bool wanted,
                                           u32 otherwise) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "  mov.u32 %0, %6; mov.u32 %1, %6; mov.u32 %2, %6; mov.u32 %3, %6;\n"
      "  @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(words[0]), "=&r"(words[1]), "=&r"(words[2]), "=&r"(words[3])
      : "l"(source), "r"((u32)wanted), "r"(otherwise));
}

// Stores to a row. These are volatile so that a single element that is stored after its vector stays
// behind it; the compiler may swap ordinary stores of different types.
__device__ __forceinline__ void store_words(void* target, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(target), "r"(a), "r"(b), "r"(c), "r"(d));
}
__device__ __forceinline__ void store_word(void* target, u32 a) {
  asm volatile("st.global.u32 [%0], %1;" : : "l"(target), "r"(a));
}
__device__ __forceinline__ void store_half_word(void* target, u16 a) {
  asm volatile("st.global.u16 [%0], %1;" : : "l"(target), "h"(a));
}

// The integer at `source`, loaded where this statement stands, ahead of the row.
__device__ __forceinline__ i64 load_early(const i64* source) {
  i64 value;
  asm volatile("ld.global.s64 %0, [%1];" : "=l"(value) : "l"(source));
  return value;
}

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

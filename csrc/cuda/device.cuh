// What the kernels need of the GPU: types, 16-bit floats, loads and stores, the fast exponential.
// No file of csrc/cuda that NVRTC compiles includes a system header, because NVRTC finds none.
#pragma once

#include "philox.h"

namespace masktuning {

typedef long long i64;
typedef unsigned short u16;

constexpr int kWarp = 32;
constexpr u32 kAllLanes = 0xffffffffu;
#define MT_INFINITY __uint_as_float(0x7f800000u)
#define MT_NAN __uint_as_float(0x7fffffffu)
#define MT_LARGEST __uint_as_float(0x7f7fffffu)  // the largest finite float
constexpr float kLog2e = 1.44269504f;

// The 16-bit types of logits, as bits.
struct Half {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

// Makes the compiler forget what it has computed from a word, so that this takes no register.
__device__ __forceinline__ void forget(u32& word) { asm volatile("" : "+r"(word)); }

// Loads the four words at `source`, or takes four times `otherwise` if they are not wanted. The
// statement is volatile so that the compiler keeps several of these together and before their first
// use. All loads of a row are then under way at once.
__device__ __forceinline__ void load_words(u32 (&words)[4], const void* source, bool wanted,
                                           u32 otherwise) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "  mov.u32 %0, %6; mov.u32 %1, %6; mov.u32 %2, %6; mov.u32 %3, %6;\n"
      "  @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=&r"(words[0]), "=&r"(words[1]), "=&r"(words[2]), "=&r"(words[3])
      : "l"(source), "r"((u32)wanted), "r"(otherwise));
}

// Stores to a row. They are volatile so that an element that is stored after the vector around it is
// still stored after it; the compiler may swap ordinary stores of different types.
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

// Loads the integer at `source` where this statement stands, before the row.
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

// Two floats rounded to 16 bits, to nearest even, in one word; the first is in its low half.
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

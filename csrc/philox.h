// Philox4x32-10 (Salmon et al., SC 2011), the only source of random numbers for masks and tokens.
// C++ and CUDA share this file. It includes nothing, because NVRTC finds no system header.
//
//   key     = (seed & 0xffffffff, seed >> 32)
//   counter = (token position, example_id, epoch, stream)
//
// masktuning/ops/philox.py holds the same contract in PyTorch.
#pragma once

#ifdef __CUDACC__
#define MT_INLINE __device__ __forceinline__
#else
#define MT_INLINE inline
#endif

namespace masktuning {

typedef unsigned int u32;
typedef unsigned long long u64;

static_assert(sizeof(u32) == 4 && sizeof(u64) == 8, "Philox needs 32- and 64-bit words");

constexpr u32 kStreamMasking = 0;       // which tokens are masked
constexpr u32 kStreamSubstitution = 1;  // which of the top-k predictions is drawn
constexpr u32 kStreamCorruption = 2;    // mask, random token or original (80/10/10)

struct Words {
  u32 w0, w1, w2, w3;
};

MT_INLINE Words philox4x32_10(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const u64 product0 = (u64)0xD2511F53u * c0;
    const u64 product1 = (u64)0xCD9E8D57u * c2;
    const u32 next0 = (u32)(product1 >> 32) ^ c1 ^ k0;
    const u32 next2 = (u32)(product0 >> 32) ^ c3 ^ k1;
    c1 = (u32)product1;
    c3 = (u32)product0;
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{c0, c1, c2, c3};
}

}  // namespace masktuning

#include "dropout.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "multiversion.h"
#include "parallel.h"

#ifdef MT_TARGET_AVX2
#include <immintrin.h>
#endif

namespace masktuning {
namespace {

// HiddenCut has stream 4, too, but draws with the run's seed; each dropout draws a seed of its own.
constexpr u32 kStreamDropout = 4;
constexpr int kCounters = 8;       // per block
constexpr int kBlock = 4 * kCounters;
constexpr int kBlocks = 32;  // drawn at a time; their words fit into the first cache

// The words of `blocks` blocks from block `first` on, in the order of the elements.
MT_TARGET_DEFAULT
void draw_blocks(u64 first, int64_t blocks, u32 k0, u32 k1, u32* words) {
  for (u64 c = first * kCounters; blocks > 0; --blocks, c += kCounters, words += kBlock) {
    const u32 low = static_cast<u32>(c), high = static_cast<u32>(c >> 32);
    for (u32 j = 0; j < kCounters; ++j) {  // `low` is a multiple of 8, so nothing carries
      const Words drawn = philox4x32_10(low + j, high, 0, kStreamDropout, k0, k1);
      words[j] = drawn.w0;
      words[kCounters + j] = drawn.w1;
      words[2 * kCounters + j] = drawn.w2;
      words[3 * kCounters + j] = drawn.w3;
    }
  }
}

#ifdef MT_TARGET_AVX2
// One round for four counters. Each 64-bit lane holds one word in its lower half. Multiplications read
// only that half, so the products need no masking. Compilers do not find this, and take three times
// as long for shuffling the halves.
MT_TARGET_AVX2 MT_ALWAYS_INLINE void round_of_four(__m256i c[4], __m256i k0, __m256i k1) {
  const __m256i product0 = _mm256_mul_epu32(_mm256_set1_epi64x(0xD2511F53), c[0]);
  const __m256i product1 = _mm256_mul_epu32(_mm256_set1_epi64x(0xCD9E8D57), c[2]);
  c[0] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c[1]), k0);
  c[2] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c[3]), k1);
  c[1] = product1;
  c[3] = product0;
}

MT_TARGET_AVX2
void draw_blocks(u64 first, int64_t blocks, u32 k0, u32 k1, u32* words) {
  static_assert(kCounters == 8, "four even and four odd counters make a block");
  for (u64 c = first * kCounters; blocks > 0; --blocks, c += kCounters, words += kBlock) {
    const __m256i low = _mm256_set1_epi64x(static_cast<u32>(c));
    const __m256i high = _mm256_set1_epi64x(static_cast<u32>(c >> 32));
    const __m256i zero = _mm256_setzero_si256(), stream = _mm256_set1_epi64x(kStreamDropout);
    __m256i even[4] = {_mm256_add_epi64(low, _mm256_setr_epi64x(0, 2, 4, 6)), high, zero, stream};
    __m256i odd[4] = {_mm256_add_epi64(low, _mm256_setr_epi64x(1, 3, 5, 7)), high, zero, stream};
    u32 key0 = k0, key1 = k1;
    for (int round = 0; round < 10; ++round) {
      const __m256i lanes0 = _mm256_set1_epi64x(key0), lanes1 = _mm256_set1_epi64x(key1);
      round_of_four(even, lanes0, lanes1);
      round_of_four(odd, lanes0, lanes1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    for (int w = 0; w < 4; ++w) {  // the lower halves of even and odd lanes, in turn
      const __m256i upper = _mm256_slli_epi64(odd[w], 32);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + w * kCounters),
                          _mm256_blend_epi32(even[w], upper, 0xaa));
    }
  }
}
#endif

struct Factors {
  u32 threshold;
  float kept;
};

template <typename T>
MT_ALWAYS_INLINE void apply(const T* in, int64_t n, const u32* words, Factors f, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    from_float(to_float(in[i]) * (words[i] < f.threshold ? 0.0f : f.kept), out[i]);
  }
}

MT_MULTIVERSION
void apply_to(const float* in, int64_t n, const u32* words, Factors f, float* out) {
  apply(in, n, words, f, out);
}

MT_MULTIVERSION
void apply_to(const Float16* in, int64_t n, const u32* words, Factors f, Float16* out) {
  apply(in, n, words, f, out);
}

MT_MULTIVERSION
void apply_to(const BFloat16* in, int64_t n, const u32* words, Factors f, BFloat16* out) {
  apply(in, n, words, f, out);
}

template <typename T>
void run(const DropoutInputs& in, Factors factors, int threads, T* out) {
  const T* values = static_cast<const T*>(in.values);
  const u32 k0 = static_cast<u32>(in.seed), k1 = static_cast<u32>(in.seed >> 32);
  parallel_rows((in.size + kBlock - 1) / kBlock, kBlock, threads, [&](int64_t begin, int64_t end) {
    u32 words[kBlocks * kBlock];
    for (int64_t first = begin; first < end; first += kBlocks) {
      const int64_t blocks = std::min<int64_t>(kBlocks, end - first);
      const int64_t start = first * kBlock;
      draw_blocks(static_cast<u64>(first), blocks, k0, k1, words);
      apply_to(values + start, std::min(blocks * kBlock, in.size - start), words, factors,
               out + start);
    }
  });
}

}  // namespace

void dropout(const DropoutInputs& in, int threads, void* out) {
  if (!(in.p >= 0.0 && in.p <= 1.0)) {
    throw std::invalid_argument("p must be in [0, 1], not " + std::to_string(in.p));
  }
  // For p = 1 no threshold of 32 bits drops everything, but the factor 0 does.
  const double threshold = std::min(std::nearbyint(in.p * 0x1p32), 0x1p32 - 1);
  const Factors factors{static_cast<u32>(threshold),
                        in.p < 1.0 ? static_cast<float>(1.0 / (1.0 - in.p)) : 0.0f};
  switch (in.dtype) {
    case Dtype::kFloat32:
      return run(in, factors, threads, static_cast<float*>(out));
    case Dtype::kFloat16:
      return run(in, factors, threads, static_cast<Float16*>(out));
    case Dtype::kBFloat16:
      return run(in, factors, threads, static_cast<BFloat16*>(out));
  }
  throw std::invalid_argument("dtype must be 0, 1 or 2");
}

}  // namespace masktuning

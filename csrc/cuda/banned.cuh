// Which elements of a row may not be substituted, as one bit each in shared memory.
//
// The bits are set while the row is being loaded. Looking one up costs the same whether three ids are
// banned or thousands.
#pragma once

#include "row_tile.cuh"

namespace masktuning {

// The bits are arranged so that those of one 16-byte vector are in one word.
template <typename Tile>
struct Banned {
  static constexpr int kElements = Tile::kElements;
  static constexpr int kWords = (Tile::kThreads * Tile::kVectors + 2) * kElements / 32 + 1;
  u32* bits;  // kWords of them
  int head;
  bool any;  // false: no id is banned, and the bits are neither set nor read

  // Sets the bits of the ids in ids_N and of every id from `limit` on. The tile starts at element
  // `first` of the whole row. All threads of the block must call this.
  __device__ __forceinline__ Banned(u32* bits_, const Tile& tile, const i64* ids_N, i64 N, i64 limit,
                                    i64 first)
      : bits(bits_), head(tile.head), any(N > 0 || limit < first + tile.length) {
    if (!any) return;
    const i64 left = limit - first;
    const int end = place(left < 0 ? 0 : left < tile.length ? (int)left : tile.length);
#pragma unroll 1
    for (int w = threadIdx.x; w < kWords; w += Tile::kThreads) {
      bits[w] = 32 * w >= end ? ~0u : 32 * w + 32 <= end ? 0u : ~0u << (end - 32 * w);
    }
    __syncthreads();
#pragma unroll 1
    for (i64 n = threadIdx.x; n < N; n += Tile::kThreads) {
      const i64 index = ids_N[n] - first;
      if (!tile.contains(index)) continue;
      const int p = place((int)index);
      atomicOr(&bits[p / 32], 1u << (p % 32));
    }
    __syncthreads();
  }

  // One bit per element of vector `v` of the tile.
  __device__ __forceinline__ u32 of_vector(int v) const {
    if (!any) return 0u;
    const int p = (v + 1) * kElements;
    return (bits[p / 32] >> (p % 32)) & ((1u << kElements) - 1u);
  }

  __device__ __forceinline__ bool has(int index) const {
    const int p = place(index);
    return any && ((bits[p / 32] >> (p % 32)) & 1u) != 0u;
  }

 private:
  __device__ __forceinline__ int place(int index) const { return index - head + kElements; }
};

// The largest element of this thread, and the largest one that is not banned. The few vectors that have
// a banned element are read again: examining them in registers would need a copy of the code for each
// vector of the thread.
template <typename Tile>
__device__ __forceinline__ void find_maxima(const Tile& tile, const Banned<Tile>& banned,
                                            float* largest, float* allowed) {
  const int t = threadIdx.x, index = tile.edge_index();
  typename Tile::Vectors mixed = 0;  // one bit per vector
  *largest = tile.edge;
  *allowed = index >= 0 && banned.has(index) ? -MT_INFINITY : tile.edge;
#pragma unroll
  for (int i = 0; i < Tile::kVectors; ++i) {
    float max = tile.at(i, 0);
#pragma unroll
    for (int e = 1; e < Tile::kElements; ++e) max = fmaxf(max, tile.at(i, e));
    *largest = fmaxf(*largest, max);
    const bool some = banned.of_vector(i * Tile::kThreads + t) != 0u;
    if (some) mixed |= Tile::vector_bit(i);
    *allowed = fmaxf(*allowed, some ? -MT_INFINITY : max);
  }
#pragma unroll 1
  for (int i = 0; mixed != 0; ++i, mixed >>= 1) {
    const int v = i * Tile::kThreads + t;
    if ((mixed & 1u) == 0u || v >= tile.vectors) continue;
    const u32 bits = banned.of_vector(v);
#pragma unroll 1
    for (int e = 0; e < Tile::kElements; ++e) {
      const float x = tile.element(tile.index_of(v) + e);
      if ((bits >> e & 1u) == 0u) *allowed = fmaxf(*allowed, x);
    }
  }
}

}  // namespace masktuning

// Finds the k largest allowed elements of a row without sorting it.
//
// The threads of the block form 128 groups. At least k elements are as large as tau, the k-th largest
// maximum of a group, and seldom many more. Those are collected and ranked. If there are too many (in a
// row of ties) the whole block searches the row once for each of the k places.
//
// Each array of Candidates, in shared memory, is written in only one phase between two barriers, so a
// slow reader can never see values of a later phase.
#pragma once

#include "banned.cuh"

namespace masktuning {

constexpr int kGroups = 128;
constexpr int kMaxCandidates = 256;
constexpr int kMaxTopK = 64;
constexpr int kNoIndex = 0x7fffffff;

struct Candidates {
  float group_max[kGroups];
  float warp_largest[kWarp], warp_allowed[kWarp], warp_sum[kWarp];
  float value[kMaxCandidates];
  int index[kMaxCandidates];  // in the whole row
  float top_value[kMaxTopK];  // value descending, index ascending
  int top_index[kMaxTopK];
  float search_value[kWarp];
  int search_index[kWarp];
  float tau;
  int count;  // above kMaxCandidates the list was too short
};

__device__ __forceinline__ bool precedes(float value, int index, float other, int other_index) {
  return value > other || (value == other && index < other_index);
}

__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lane));
  return x;
}

// The largest of the values that each warp has written.
template <int THREADS>
__device__ __forceinline__ float maximum_of(const float* warps) {
  float x = warps[0];
#pragma unroll
  for (int w = 1; w < THREADS / kWarp; ++w) x = fmaxf(x, warps[w]);
  return x;
}

// Finds tau for k places from the largest allowed element of each thread. Returns the largest element of
// the row, banned or not, and empties the list. All threads of the block must call this.
template <int THREADS>
__device__ __forceinline__ float find_threshold(Candidates& c, float largest, float allowed, int k,
                                                float* tau) {
  constexpr int kLanes = THREADS / kGroups, kWarps = THREADS / kWarp;
  static_assert(kLanes >= 1 && kLanes <= kWarp, "a group is one warp or less");
  const int t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  float group = allowed;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    group = fmaxf(group, __shfl_xor_sync(kAllLanes, group, step));
  }
  if (t % kLanes == 0) c.group_max[t / kLanes] = group;
  largest = warp_maximum(largest);
  allowed = warp_maximum(allowed);
  if (lane == 0) {
    c.warp_largest[warp] = largest;
    c.warp_allowed[warp] = allowed;
  }
  if (t == 0) {
    c.count = 0;
    c.tau = MT_INFINITY;
  }
  __syncthreads();
  largest = maximum_of<THREADS>(c.warp_largest);
  if (k == 1) {
    *tau = maximum_of<THREADS>(c.warp_allowed);
  } else {
    float others[kGroups / kWarp];
#pragma unroll
    for (int q = 0; q < kGroups / kWarp; ++q) others[q] = c.group_max[q * kWarp + lane];
#pragma unroll 1
    for (int g = warp; g < kGroups; g += kWarps) {  // a warp ranks one group at a time
      const float mine = c.group_max[g];
      int rank = 0;
#pragma unroll
      for (int q = 0; q < kGroups / kWarp; ++q) {
        rank += __popc(__ballot_sync(kAllLanes, precedes(others[q], q * kWarp + lane, mine, g)));
      }
      if (rank == k - 1 && lane == 0) c.tau = mine;
    }
    __syncthreads();
    *tau = c.tau;
  }
  // An element of -inf is never substituted. If fewer than k groups have another element, all others
  // are candidates.
  *tau = fmaxf(*tau, -MT_LARGEST);
  return largest;
}

// Adds an element to the list. Returns false if it is full.
__device__ __forceinline__ bool collect(Candidates& c, float value, int index) {
  const int slot = atomicAdd(&c.count, 1);
  if (slot >= kMaxCandidates) return false;
  c.value[slot] = value;
  c.index[slot] = index;
  return true;
}

// Collects the allowed elements that are at least tau from the few vectors of this thread in `reaching`.
// Each element is read again, from a cache.
template <typename Tile>
__device__ __forceinline__ void collect_vectors(Candidates& c, const Tile& tile, float tau,
                                                const Banned<Tile>& banned, int first,
                                                typename Tile::Vectors reaching) {
#pragma unroll 1
  for (int i = 0; reaching != 0; ++i, reaching >>= 1) {
    if ((reaching & 1u) == 0u) continue;
    const int begin = tile.index_of(i * Tile::kThreads + (int)threadIdx.x);
#pragma unroll 1
    for (int index = begin; index < begin + Tile::kElements; ++index) {
      const float x = tile.element(index);
      if (x >= tau && !banned.has(index) && !collect(c, x, first + index)) return;
    }
  }
}

// The sum of e^(x - shift) over the tile of the block, in a fixed order. The allowed elements that are
// at least tau are collected on the way.
template <typename Tile>
__device__ __forceinline__ float sum_and_collect(Candidates& c, Tile& tile, float shift, float tau,
                                                 const Banned<Tile>& banned, int first) {
  constexpr int kThreads = Tile::kThreads;
  const int t = threadIdx.x, edge_index = tile.edge_index();
  float sum = fast_exp2((tile.edge - shift) * kLog2e);
  typename Tile::Vectors reaching = 0;
#pragma unroll
  for (int i = 0; i < Tile::kVectors; ++i) {
    tile.forget_floats(i);
    bool reaches = false;
#pragma unroll
    for (int e = 0; e < Tile::kElements; ++e) {
      const float x = tile.at(i, e);
      sum += fast_exp2((x - shift) * kLog2e);
      reaches |= x >= tau;
    }
    if (reaches) reaching |= Tile::vector_bit(i);
  }
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lane);
  if (t % kWarp == 0) c.warp_sum[t / kWarp] = sum;
  if (tile.edge >= tau && !banned.has(edge_index)) collect(c, tile.edge, first + edge_index);
  collect_vectors(c, tile, tau, banned, first, reaching);
  __syncthreads();
  sum = 0.0f;
  for (int w = 0; w < kThreads / kWarp; ++w) sum += c.warp_sum[w];
  return sum;
}

// Fills the k places by one search of the block for each. The result is that of rank_candidates.
template <typename Tile>
__device__ __forceinline__ int search(Candidates& c, const Tile& tile, const Banned<Tile>& banned,
                                      int first, int k) {
  constexpr int kThreads = Tile::kThreads;
  const int t = threadIdx.x;
  float last = MT_INFINITY;
  int last_index = -1;
  for (int place = 0; place < k; ++place) {
    float best = -MT_INFINITY;
    int best_index = kNoIndex;
#pragma unroll 1
    for (int j = t; j < tile.length; j += kThreads) {
      const float x = tile.element(j);
      const int index = first + j;
      if (x == -MT_INFINITY || !precedes(last, last_index, x, index)) continue;
      if (precedes(x, index, best, best_index) && !banned.has(j)) {
        best = x;
        best_index = index;
      }
    }
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, lane);
      const int other_index = __shfl_xor_sync(kAllLanes, best_index, lane);
      if (precedes(other, other_index, best, best_index)) {
        best = other;
        best_index = other_index;
      }
    }
    if (t % kWarp == 0) {
      c.search_value[t / kWarp] = best;
      c.search_index[t / kWarp] = best_index;
    }
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (precedes(c.search_value[w], c.search_index[w], best, best_index)) {
        best = c.search_value[w];
        best_index = c.search_index[w];
      }
    }
    __syncthreads();
    if (best_index == kNoIndex) return place;
    if (t == 0) {
      c.top_value[place] = best;
      c.top_index[place] = best_index;
    }
    last = best;
    last_index = best_index;
  }
  return k;
}

// Puts the first k of n candidates in order. A warp takes one candidate at a time and counts how many
// others precede it.
template <int THREADS>
__device__ __forceinline__ void rank_candidates(Candidates& c, const float* value, const int* index,
                                                int n, int k) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int j = threadIdx.x / kWarp; j < n; j += THREADS / kWarp) {
    const float mine = value[j];
    const int my_index = index[j];
    int rank = 0;
#pragma unroll 1
    for (int base = 0; base < n; base += kWarp) {
      const int other = base + lane;
      const bool before = other < n && precedes(value[other], index[other], mine, my_index);
      rank += __popc(__ballot_sync(kAllLanes, before));
    }
    if (lane == 0 && rank < k && my_index != kNoIndex) {
      c.top_value[rank] = mine;
      c.top_index[rank] = my_index;
    }
  }
}

// Writes the k largest allowed elements of the tile to c.top_*, after sum_and_collect. Returns how many
// there are.
template <typename Tile>
__device__ __forceinline__ int choose(Candidates& c, const Tile& tile, const Banned<Tile>& banned,
                                      int first, int k) {
  const int n = c.count;
  if (n > kMaxCandidates) return search(c, tile, banned, first, k);
  rank_candidates<Tile::kThreads>(c, c.value, c.index, n, k);
  return n < k ? n : k;
}

}  // namespace masktuning

// The k largest elements of a row without a sort, and the integer draw among them.
//
// The row's threads form 128 groups. The (k + banned)-th largest of the groups' maxima, tau, is
// reached by at least k allowed elements, and seldom by many more: those are collected and ranked.
// Where too many reach it (a row of ties) a search of the whole block per place takes over.
#pragma once

#include "row_tile.cuh"

namespace masktuning {

constexpr int kGroups = 128;
constexpr int kMaxCandidates = 256;
constexpr int kMaxTopK = 64;
constexpr int kNoIndex = 0x7fffffff;

struct Candidates {
  float group_max[kGroups];
  float value[kMaxCandidates];
  int index[kMaxCandidates];  // in the whole row
  float top_value[kMaxTopK];  // value descending, index ascending
  int top_index[kMaxTopK];
  float warp_value[kWarp];
  int warp_index[kWarp];
  int vector[kMaxCandidates];  // those with an element that reaches tau
  float tau, max;              // max: the row's largest element, banned or not
  int count, vectors;          // more than kMaxCandidates: the lists did not suffice
};

__device__ __forceinline__ bool precedes(float value, int index, float other, int other_index) {
  return value > other || (value == other && index < other_index);
}

// Ids to leave out of the choice; few, and looked up for candidates only.
struct Banned {
  const i64* ids;
  int n;
  __device__ __forceinline__ bool has(int id) const {
#pragma unroll 1
    for (int j = 0; j < n; ++j) {
      if (ids[j] == id) return true;
    }
    return false;
  }
};

// Sets c.max and c.tau, empties the lists; all threads pass the barriers.
template <int THREADS>
__device__ __forceinline__ void find_threshold(Candidates& c, float maximum, i64 wanted) {
  constexpr int kLanes = THREADS / kGroups;
  static_assert(kLanes >= 1 && kLanes <= kWarp, "a group is one warp or less");
  const int t = threadIdx.x;
#pragma unroll
  for (int lane = 1; lane < kLanes; lane *= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, lane));
  }
  if (t % kLanes == 0) c.group_max[t / kLanes] = maximum;
  if (t == 0) {
    c.count = c.vectors = 0;
    c.tau = MT_INFINITY;
  }
  __syncthreads();
  if (t < kGroups) {
    const float mine = c.group_max[t];
    int rank = 0;
#pragma unroll 8
    for (int g = 0; g < kGroups; ++g) rank += precedes(c.group_max[g], g, mine, t) ? 1 : 0;
    if (rank == 0) c.max = mine;
    if (rank == wanted - 1) c.tau = mine;
  }
  if (wanted > kGroups && t == 0) c.vectors = kMaxCandidates + 1;  // no threshold: search instead
  __syncthreads();
}

__device__ __forceinline__ void collect(Candidates& c, const Banned& banned, float value, int index) {
  // -inf is never chosen: its weight in the draw is 0.
  if (!(value >= c.tau) || value == -MT_INFINITY || banned.has(index)) return;
  const int slot = atomicAdd(&c.count, 1);
  if (slot >= kMaxCandidates) return;
  c.value[slot] = value;
  c.index[slot] = index;
}

// The elements of the vectors that reach tau; each is read again, which the cache serves.
template <int THREADS, typename Tile>
__device__ __forceinline__ void collect_vectors(Candidates& c, const Tile& tile, const Banned& banned,
                                                int first) {
#pragma unroll 1
  for (int j = threadIdx.x; j < c.vectors * Tile::kElements; j += THREADS) {
    const int index = c.vector[j / Tile::kElements] * Tile::kElements + tile.head + j % Tile::kElements;
    collect(c, banned, tile.element(index), first + index);
  }
}

// One search of the block per place; the result is that of rank_candidates.
template <int THREADS, typename Tile>
__device__ __forceinline__ int search(Candidates& c, const Tile& tile, const Banned& banned, int first,
                                      int k) {
  const int t = threadIdx.x;
  float last = MT_INFINITY;
  int last_index = -1;
  for (int place = 0; place < k; ++place) {
    float best = -MT_INFINITY;
    int best_index = kNoIndex;
#pragma unroll 1
    for (int j = t; j < tile.length; j += THREADS) {
      const float x = tile.element(j);
      const int index = first + j;
      if (x == -MT_INFINITY || !precedes(last, last_index, x, index)) continue;
      if (precedes(x, index, best, best_index) && !banned.has(index)) {
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
      c.warp_value[t / kWarp] = best;
      c.warp_index[t / kWarp] = best_index;
    }
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < THREADS / kWarp; ++w) {
      if (precedes(c.warp_value[w], c.warp_index[w], best, best_index)) {
        best = c.warp_value[w];
        best_index = c.warp_index[w];
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

// Puts the k first of n candidates in order, by counting how many precede each.
template <int THREADS>
__device__ __forceinline__ void rank_candidates(Candidates& c, const float* value, const int* index,
                                                int n, int k) {
#pragma unroll 1
  for (int j = threadIdx.x; j < n; j += THREADS) {
    int rank = 0;
#pragma unroll 1
    for (int other = 0; other < n; ++other) {
      rank += precedes(value[other], index[other], value[j], index[j]) ? 1 : 0;
    }
    if (rank < k && index[j] != kNoIndex) {
      c.top_value[rank] = value[j];
      c.top_index[rank] = index[j];
    }
  }
}

// Integer weight of a candidate: floor(2^24 * 2^y), rounded as masktuning/ops/draw.py does.
__device__ __forceinline__ u32 draw_weight(float value, float best, float scale) {
  float y = __fmul_rn(__fadd_rn(value, -best), scale);
  if (!(y > -25.0f)) y = -25.0f;
  const float whole = floorf(y);
  const float f = __fadd_rn(y, -whole);
  float power = 0.00186699f;
  power = __fadd_rn(__fmul_rn(power, f), 0.00901733f);
  power = __fadd_rn(__fmul_rn(power, f), 0.05579971f);
  power = __fadd_rn(__fmul_rn(power, f), 0.2401645f);
  power = __fadd_rn(__fmul_rn(power, f), 0.6931513f);
  power = __fadd_rn(__fmul_rn(power, f), 1.0f);
  const float unit = __uint_as_float((u32)((int)whole + 24 + 127) << 23);  // a power of two: exact
  return (u32)__fmul_rn(power, unit);
}

// One of the first n places, by the 32-bit draw; called by one whole warp. 64 weights of at most
// 2^24 fit 32 bits.
__device__ __forceinline__ int draw_among(const Candidates& c, int n, float scale, u32 draw) {
  const int lane = threadIdx.x % kWarp;
  const float best = c.top_value[0];
  u32 cumulative[2];
  u32 before = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = lane + half * kWarp;
    u32 sum = j < n ? draw_weight(c.top_value[j], best, scale) : 0u;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const u32 below = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += below;
    }
    cumulative[half] = before + sum;
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  const u32 point = (u32)(((u64)draw * before) >> 32);
  const u32 first = __ballot_sync(kAllLanes, cumulative[0] > point);
  const u32 second = __ballot_sync(kAllLanes, cumulative[1] > point);
  return c.top_index[first != 0 ? __ffs((int)first) - 1 : kWarp + __ffs((int)second) - 1];
}

}  // namespace masktuning

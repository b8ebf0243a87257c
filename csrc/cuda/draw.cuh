// The draw among the k largest elements of a row, in integer arithmetic, so that every back end draws
// the same token.
#pragma once

#include "candidates.cuh"

namespace masktuning {

// The integer weight of a candidate, floor(2^24 * 2^y), rounded as masktuning/ops/topk_sampling.py does.
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

// The id of one of the first n candidates, chosen by their weights and the random number `draw`. Called
// by one whole warp. The sum of 64 weights of at most 2^24 fits 32 bits.
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

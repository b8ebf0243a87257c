// sample_masks and sample_masks_threshold on a GPU, one block per row. The policy `exact` is a radix
// select over the draws. The policy `threshold` first counts the tokens of each row, whose sums say
// where the rows begin in the outputs, and then writes them.
//
// Every pass computes the draws again. Philox costs less than keeping them, and any length fits.
// Shapes: B examples, L tokens, M masked positions, N replacement ids.
#include "device.cuh"

namespace masktuning {

constexpr int kThreads = 256;
constexpr i64 kIgnoreIndex = -100;
constexpr u32 kShowMaskBelow = 3435973837u;    // round(0.8 * 2^32)
constexpr u32 kShowRandomBelow = 3865470566u;  // round(0.9 * 2^32)

// Packed by masktuning/ops/mask_sampling.py and threshold_masking.py, in this order.
struct MaskArguments {
  const i64* input_ids_BL;
  const bool* maskable_BL;
  const i64 *example_ids_B, *offsets_B1, *rng_2;
  const i64* replacement_ids_N;  // null: every masked token is replaced by the mask
  i64 *masked_ids_BL, *positions_M, *targets_M;
  const i64* thresholds_BL;  // of the policy `threshold`, which has no maskable_BL
  i64* counts_B;             // what its first kernel writes
  i64 B, L, N, M, mask_token_id;
};

// Returns the sum over the threads before this one; *total is the sum over all. There are two barriers.
__device__ __forceinline__ u32 exclusive_sum(u32 value, u32* total) {
  __shared__ u32 warp_sums[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  u32 inclusive = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const u32 below = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == kWarp - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  u32 before = 0, all = 0;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warp_sums[w];
    all += warp_sums[w];
  }
  __syncthreads();
  *total = all;
  return before + inclusive - value;
}

struct Row {
  const MaskArguments& a;
  i64 b;
  u32 example_id, epoch, k0, k1;

  __device__ __forceinline__ Row(const MaskArguments& a_, i64 b_) : a(a_), b(b_) {
    example_id = (u32)a.example_ids_B[b];
    epoch = (u32)a.rng_2[1];
    k0 = (u32)a.rng_2[0];
    k1 = (u32)((u64)a.rng_2[0] >> 32);
  }

  __device__ __forceinline__ bool maskable(i64 t) const {
    return t < a.L && a.maskable_BL[b * a.L + t];
  }

  __device__ __forceinline__ u32 draw(i64 t) const {
    return philox4x32_10((u32)t, example_id, epoch, kStreamMasking, k0, k1).w0;
  }

  __device__ __forceinline__ bool below_threshold(i64 t) const {
    return t < a.L && (i64)draw(t) < a.thresholds_BL[b * a.L + t];
  }

  // What replaces a masked token: the mask or, if there are replacement ids, sometimes one of them or
  // the token itself.
  __device__ __forceinline__ i64 shown(i64 t, i64 original) const {
    if (a.replacement_ids_N == nullptr) return a.mask_token_id;
    const Words words = philox4x32_10((u32)t, example_id, epoch, kStreamCorruption, k0, k1);
    if (words.w0 < kShowMaskBelow) return a.mask_token_id;
    if (words.w0 >= kShowRandomBelow) return original;
    return a.replacement_ids_N[((u64)words.w1 * (u64)a.N) >> 32];
  }
};

// The `wanted`-th smallest draw of the maskable tokens of the row. *ties becomes the number of tokens
// with exactly this draw that are to be masked; it is 0 if no token is wanted or maskable.
__device__ __forceinline__ u32 select_draw(const Row& row, u32 wanted, u32* ties) {
  __shared__ u32 histogram[kThreads];
  __shared__ u32 found[2];
  u32 prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    for (i64 t = threadIdx.x; t < row.a.L; t += kThreads) {
      if (!row.maskable(t)) continue;
      const u32 draw = row.draw(t);
      if ((draw & mask) == prefix) atomicAdd(&histogram[(draw >> shift) & 255u], 1u);
    }
    __syncthreads();
    const u32 mine = histogram[threadIdx.x];
    u32 total;
    const u32 before = exclusive_sum(mine, &total);
    if (wanted > total) wanted = total;
    if (wanted == 0) break;  // the same for every thread
    if (before < wanted && wanted <= before + mine) {
      found[0] = threadIdx.x;
      found[1] = before;
    }
    __syncthreads();
    prefix |= found[0] << shift;
    wanted -= found[1];
    mask |= 255u << shift;
  }
  *ties = wanted;
  return prefix;
}

// Marks slots as surplus: they count for nothing.
__device__ __forceinline__ void fill(const MaskArguments& a, i64 begin, i64 end) {
  if (begin < 0) begin = 0;
  if (end > a.M) end = a.M;
  for (i64 slot = begin + threadIdx.x; slot < end; slot += kThreads) {
    a.positions_M[slot] = -1;
    a.targets_M[slot] = kIgnoreIndex;
  }
}

}  // namespace masktuning

extern "C" __global__ __launch_bounds__(256) void sample_masks(masktuning::MaskArguments a) {
  using namespace masktuning;
  const i64 b = blockIdx.x;
  if (b == 0) fill(a, a.offsets_B1[a.B], a.M);  // surplus rows
  if (b >= a.B) return;                         // an empty batch still has one block
  const Row row(a, b);
  const i64 begin = a.offsets_B1[b], end = a.offsets_B1[b + 1];
  u32 ties;
  const u32 last = select_draw(row, end > begin ? (u32)(end - begin) : 0u, &ties);
  u32 smaller = 0, equal = 0;  // tokens before this chunk with a draw below, or equal to, `last`
  for (i64 chunk = 0; chunk < a.L; chunk += kThreads) {
    const i64 t = chunk + threadIdx.x;
    const bool candidate = ties != 0 && row.maskable(t);
    const u32 draw = candidate ? row.draw(t) : 0u;
    const bool below = candidate && draw < last, same = candidate && draw == last;
    u32 total;  // two counts share a word, since a chunk has 256 tokens
    const u32 before = exclusive_sum((below ? 1u : 0u) | (same ? 65536u : 0u), &total);
    const u32 same_before = equal + (before >> 16);
    if (t < a.L) {
      const i64 flat = b * a.L + t, original = a.input_ids_BL[flat];
      const bool chosen = below || (same && same_before < ties);
      a.masked_ids_BL[flat] = chosen ? row.shown(t, original) : original;
      const u32 rank = smaller + (before & 65535u) + (same_before < ties ? same_before : ties);
      const i64 slot = begin + rank;
      if (chosen && slot >= 0 && slot < a.M) {
        a.positions_M[slot] = flat;
        a.targets_M[slot] = original;
      }
    }
    smaller += total & 65535u;
    equal += total >> 16;
  }
  // Offsets that ask for more tokens than the row can mask leave surplus slots.
  fill(a, begin + smaller + (equal < ties ? equal : ties), end);
}

// The number of tokens of each row whose draw is below their threshold.
extern "C" __global__ __launch_bounds__(256) void count_below_threshold(masktuning::MaskArguments a) {
  using namespace masktuning;
  const i64 b = blockIdx.x;
  if (b >= a.B) return;  // an empty batch still has one block
  const Row row(a, b);
  u32 mine = 0, total;
  for (i64 t = threadIdx.x; t < a.L; t += kThreads) mine += row.below_threshold(t) ? 1u : 0u;
  exclusive_sum(mine, &total);
  if (threadIdx.x == 0) a.counts_B[b] = total;
}

// Masks these tokens. The offsets are the sums of the counts.
extern "C" __global__ __launch_bounds__(256) void sample_masks_threshold(masktuning::MaskArguments a) {
  using namespace masktuning;
  const i64 b = blockIdx.x;
  if (b >= a.B) return;
  const Row row(a, b);
  i64 slot = a.offsets_B1[b];  // of the first masked token of this chunk
  for (i64 chunk = 0; chunk < a.L; chunk += kThreads) {
    const i64 t = chunk + threadIdx.x;
    const bool chosen = row.below_threshold(t);
    u32 total;
    const u32 before = exclusive_sum(chosen ? 1u : 0u, &total);
    if (t < a.L) {
      const i64 flat = b * a.L + t, original = a.input_ids_BL[flat];
      a.masked_ids_BL[flat] = chosen ? row.shown(t, original) : original;
      if (chosen) {
        a.positions_M[slot + before] = flat;
        a.targets_M[slot + before] = original;
      }
    }
    slot += total;
  }
}

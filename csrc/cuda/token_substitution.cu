// substitute_tokens on a GPU: log-sum-exp, loss, the k largest, the draw among them, the scatter
// into the text and, when training, the gradient over the logits.
//
// substitute_rows_*: a block a row, one read and one write, the row in registers.
// split_rows_*, then finish_rows_*: a row among several blocks, where rows are few or long; the
// second kernel reads the logits again (from the L2 cache, at the sizes that they are meant for).
//
// Shapes: B examples, L tokens, M rows, V vocabulary, N banned ids, S slices of a row.
// The order of every sum is fixed, so two runs give the same bits.
#include "candidates.cuh"

namespace masktuning {

constexpr i64 kIgnoreIndex = -100;
constexpr float kLog2e = 1.44269504f;

// Filled by masktuning/ops/cuda.py, in this order.
struct RowArguments {
  void* logits_MV;
  const void* bias_V;  // null for none; rows and bias must be equally aligned
  const i64 *positions_M, *targets_M, *example_ids_B, *rng_2, *banned_ids_N;
  float* losses_M;
  i64 *tokens_M, *input_ids_BL;
  float *lse_M, *slices;  // slices: a scratch row for each row, see Slices
  i64 V, row_stride, BL, L, N, S, slice_length;
  int top_k;
  float draw_scale, gradient_scale;  // gradient_scale 0: the logits stay
};

// Scratch of a row: S maxima, S sums, the target's logit, then S * top_k values and indices.
struct Slices {
  float *max, *sum, *target, *value;
  int* index;
  __device__ __forceinline__ Slices(const RowArguments& a, i64 m) {
    max = a.slices + m * (2 * a.S + 1 + 2 * a.S * a.top_k);
    sum = max + a.S;
    target = sum + a.S;
    value = target + 1;
    index = reinterpret_cast<int*>(value + a.S * a.top_k);
  }
};

// What is known of a row once all of it has been read.
struct RowSum {
  float shift, sum;  // sum of e^(x - shift)
  bool broken;       // NaN or +inf among the logits
};

__device__ __forceinline__ bool in_vocabulary(const RowArguments& a, i64 target) {
  return target >= 0 && target < a.V;
}

// By thread 0: loss and log-sum-exp. A target outside the vocabulary shows as NaN.
__device__ __forceinline__ void write_loss(const RowArguments& a, i64 m, const RowSum& row,
                                           float x_target) {
  const float log_sum = logf(row.sum);
  const i64 target = a.targets_M[m];
  const bool bad = row.broken || !in_vocabulary(a, target);
  a.lse_M[m] = row.broken ? MT_NAN : log_sum + row.shift;
  a.losses_M[m] = target == kIgnoreIndex ? 0.0f : bad ? MT_NAN : log_sum - (x_target - row.shift);
}

// By the first warp: the token of a row, from the n largest in c.
__device__ __forceinline__ void write_token(const RowArguments& a, i64 m, const Candidates& c, int n,
                                            bool broken) {
  const i64 position = a.positions_M[m];
  if (position < 0 || position >= a.BL) {
    if (threadIdx.x == 0) a.tokens_M[m] = -1;
    return;
  }
  i64 token = a.input_ids_BL[position];
  if (!broken && n > 0) {
    token = c.top_index[0];
    if (a.top_k > 1) {
      // In 32 bits: a 64-bit division would take registers that hold the row.
      const u32 b = (u32)position / (u32)a.L, t = (u32)position % (u32)a.L;
      const u64 seed = (u64)a.rng_2[0];
      const Words words = philox4x32_10(t, (u32)a.example_ids_B[b], (u32)a.rng_2[1],
                                        kStreamSubstitution, (u32)seed, (u32)(seed >> 32));
      token = draw_among(c, n, a.draw_scale, words.w0);
    }
  }
  if (threadIdx.x == 0) {
    a.tokens_M[m] = token;
    a.input_ids_BL[position] = token;
  }
}

// (p - onehot) * gradient_scale over the logits of the tile, which starts at element `first`.
template <typename Tile>
__device__ __forceinline__ void write_gradient(const RowArguments& a, i64 m, Tile& tile, i64 first,
                                               const RowSum& row, float x_target) {
  const i64 target = a.targets_M[m];
  if (target == kIgnoreIndex) {
    tile.replace([](float) { return 0.0f; });
    return;
  }
  const bool bad = row.broken || !in_vocabulary(a, target);
  const float shift = row.shift, factor = bad ? MT_NAN : __fdividef(a.gradient_scale, row.sum);
  tile.replace([=](float x) { return fast_exp2((x - shift) * kLog2e) * factor; });
  const i64 index = target - first;
  if (bad || !tile.contains(index) || tile.owner((int)index) != (int)threadIdx.x) return;
  // By the thread that wrote p there; -1 is folded in float32, before any rounding to 16 bits.
  const float term = fast_exp2((x_target - shift) * kLog2e);
  Tile::P::store(tile.row + index, (term - row.sum) * __fdividef(a.gradient_scale, row.sum));
}

// Sum of e^(x - shift) over the block's tile, and which of its vectors reach c.tau.
template <int THREADS, typename Tile>
__device__ __forceinline__ float sum_and_collect(Candidates& c, Tile& tile, float shift,
                                                 const Banned& banned, int first) {
  const int t = threadIdx.x;
  const float tau = c.tau;
  float sum = fast_exp2((tile.edge - shift) * kLog2e);
  if (tile.edge >= tau) collect(c, banned, tile.edge, first + tile.edge_index());
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
    if (reaches && i * THREADS + t < tile.vectors) {  // tau may be the -inf that fills the rest
      const int slot = atomicAdd(&c.vectors, 1);
      if (slot < kMaxCandidates) c.vector[slot] = i * THREADS + t;
    }
  }
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lane);
  if (t % kWarp == 0) c.warp_value[t / kWarp] = sum;
  __syncthreads();
  sum = 0.0f;
  for (int w = 0; w < THREADS / kWarp; ++w) sum += c.warp_value[w];
  return sum;
}

// The k largest of the tile into c.top_*, after sum_and_collect; returns how many there are.
template <int THREADS, typename Tile>
__device__ __forceinline__ int choose(Candidates& c, const Tile& tile, const Banned& banned, int first,
                                      int k) {
  if (c.vectors > kMaxCandidates) return search<THREADS>(c, tile, banned, first, k);
  collect_vectors<THREADS>(c, tile, banned, first);
  __syncthreads();
  const int n = c.count;
  if (n > kMaxCandidates) return search<THREADS>(c, tile, banned, first, k);
  rank_candidates<THREADS>(c, c.value, c.index, n, k);
  return n < k ? n : k;
}

template <typename T, int THREADS, int VECTORS>
__device__ __forceinline__ void substitute_rows(const RowArguments& a) {
  __shared__ Candidates c;
  __shared__ float x_target;
  const i64 m = blockIdx.x;
  T* row = static_cast<T*>(a.logits_MV) + m * a.row_stride;
  const T* bias = static_cast<const T*>(a.bias_V);
  const Banned banned = {a.banned_ids_N, (int)a.N};
  RowTile<T, THREADS, VECTORS> tile(row, (int)a.V, bias);
  if (threadIdx.x == 0) x_target = tile.contains(a.targets_M[m]) ? tile.element(a.targets_M[m]) : 0.0f;
  find_threshold<THREADS>(c, tile.maximum(), a.top_k + a.N);
  const float max = c.max;
  RowSum sum;
  sum.shift = max == -MT_INFINITY ? 0.0f : max;
  sum.sum = sum_and_collect<THREADS>(c, tile, sum.shift, banned, 0);
  sum.broken = !(sum.sum < MT_INFINITY) || max == MT_INFINITY;
  const int n = choose<THREADS>(c, tile, banned, 0, a.top_k);
  __syncthreads();
  // First, so that the row's registers are free and its stores under way during the draw.
  if (a.gradient_scale != 0.0f) write_gradient(a, m, tile, 0, sum, x_target);
  if (threadIdx.x == 0) write_loss(a, m, sum, x_target);
  if (threadIdx.x < kWarp) write_token(a, m, c, n, sum.broken);
}

// Slice s of row m: its maximum, its sum, its k largest, and the target's logit where it is here.
template <typename T, int THREADS, int VECTORS>
__device__ __forceinline__ void split_rows(const RowArguments& a) {
  __shared__ Candidates c;
  __shared__ float x_target;
  const i64 m = blockIdx.x, s = blockIdx.y, first = s * a.slice_length;
  const i64 left = a.V - first;
  const int length = (int)(left < a.slice_length ? left : a.slice_length);
  const Slices slices(a, m);
  const T* bias = a.bias_V == nullptr ? nullptr : static_cast<const T*>(a.bias_V) + first;
  const Banned banned = {a.banned_ids_N, (int)a.N};
  RowTile<T, THREADS, VECTORS> tile(static_cast<T*>(a.logits_MV) + m * a.row_stride + first, length,
                                    bias);
  const i64 target = a.targets_M[m] - first;
  if (threadIdx.x == 0) x_target = tile.contains(target) ? tile.element(target) : 0.0f;
  find_threshold<THREADS>(c, tile.maximum(), a.top_k + a.N);
  const float max = c.max;
  const float shift = max == -MT_INFINITY ? 0.0f : max;
  const float sum = sum_and_collect<THREADS>(c, tile, shift, banned, (int)first);
  const int n = choose<THREADS>(c, tile, banned, (int)first, a.top_k);
  __syncthreads();
  if (threadIdx.x == 0) {
    slices.max[s] = max;
    slices.sum[s] = sum;
    if (tile.contains(target)) *slices.target = x_target;
  }
  for (int j = threadIdx.x; j < a.top_k; j += THREADS) {
    slices.value[s * a.top_k + j] = j < n ? c.top_value[j] : -MT_INFINITY;
    slices.index[s * a.top_k + j] = j < n ? c.top_index[j] : kNoIndex;
  }
}

// Every block adds up its row's slices, in order; the first one also writes loss and token.
template <typename T, int THREADS, int VECTORS>
__device__ __forceinline__ void finish_rows(const RowArguments& a) {
  __shared__ Candidates c;
  const i64 m = blockIdx.x, s = blockIdx.y, first = s * a.slice_length;
  const Slices slices(a, m);
  float max = -MT_INFINITY;
  for (i64 j = 0; j < a.S; ++j) max = fmaxf(max, slices.max[j]);
  RowSum sum;
  sum.shift = max == -MT_INFINITY ? 0.0f : max;
  sum.sum = 0.0f;
  for (i64 j = 0; j < a.S; ++j) {
    if (slices.sum[j] == 0.0f) continue;  // -inf alone, which has no scale
    const float shift = slices.max[j] == -MT_INFINITY ? 0.0f : slices.max[j];
    sum.sum += slices.sum[j] * fast_exp2((shift - sum.shift) * kLog2e);
  }
  sum.broken = !(sum.sum < MT_INFINITY) || max == MT_INFINITY;
  const bool known = in_vocabulary(a, a.targets_M[m]);
  const float x_target = known ? *slices.target : 0.0f;
  if (s == 0) {
    const int n = (int)a.S * a.top_k;
    if (threadIdx.x == 0) c.count = 0;
    __syncthreads();
    int found = 0;
    for (int j = threadIdx.x; j < n; j += THREADS) found += slices.index[j] != kNoIndex ? 1 : 0;
    if (found != 0) atomicAdd(&c.count, found);
    rank_candidates<THREADS>(c, slices.value, slices.index, n, a.top_k);
    __syncthreads();
    const int chosen = c.count < a.top_k ? c.count : a.top_k;
    if (threadIdx.x == 0) write_loss(a, m, sum, x_target);
    if (threadIdx.x < kWarp) write_token(a, m, c, chosen, sum.broken);
  }
  if (a.gradient_scale == 0.0f) return;
  const i64 left = a.V - first;
  const int length = (int)(left < a.slice_length ? left : a.slice_length);
  const T* bias = a.bias_V == nullptr ? nullptr : static_cast<const T*>(a.bias_V) + first;
  RowTile<T, THREADS, VECTORS> tile(static_cast<T*>(a.logits_MV) + m * a.row_stride + first, length,
                                    bias);
  write_gradient(a, m, tile, first, sum, x_target);
}

}  // namespace masktuning

#define MT_ROWS(NAME, T, THREADS, VECTORS, BLOCKS)                                             \
  extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void                                \
      substitute_rows_##NAME##_##THREADS##x##VECTORS(masktuning::RowArguments a) {             \
    masktuning::substitute_rows<masktuning::T, THREADS, VECTORS>(a);                           \
  }
#define MT_SPLIT(NAME, T, THREADS, VECTORS, BLOCKS)                                            \
  extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void                                \
      split_rows_##NAME##_##THREADS##x##VECTORS(masktuning::RowArguments a) {                  \
    masktuning::split_rows<masktuning::T, THREADS, VECTORS>(a);                                \
  }                                                                                            \
  extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void                                \
      finish_rows_##NAME##_##THREADS##x##VECTORS(masktuning::RowArguments a) {                 \
    masktuning::finish_rows<masktuning::T, THREADS, VECTORS>(a);                               \
  }

// Threads x vectors: V up to 4,096, 32,768 and 57,344 in 16 bits; 2,048, 30,720 and 51,200 in 32.
// masktuning/ops/cuda.py chooses among them by these names.
namespace masktuning {
typedef float Float;
}
MT_ROWS(float32, Float, 128, 4, 4)
MT_ROWS(float32, Float, 512, 15, 1)
MT_ROWS(float32, Float, 256, 50, 1)
MT_SPLIT(float32, Float, 256, 4, 4)
MT_ROWS(float16, Half, 128, 4, 4)
MT_ROWS(float16, Half, 512, 8, 2)
MT_ROWS(float16, Half, 1024, 7, 1)
MT_SPLIT(float16, Half, 256, 4, 4)
MT_ROWS(bfloat16, BFloat16, 128, 4, 4)
MT_ROWS(bfloat16, BFloat16, 512, 8, 2)
MT_ROWS(bfloat16, BFloat16, 1024, 7, 1)
MT_SPLIT(bfloat16, BFloat16, 256, 4, 4)

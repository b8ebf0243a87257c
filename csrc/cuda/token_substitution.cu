// substitute_tokens on a GPU: log-sum-exp, loss, the k largest logits, the draw among them, the scatter
// into the text and, when training, the gradient, which overwrites the logits.
//
// substitute_rows_*: one block per row, which holds the row in registers, reads it once and writes it
// once.
// split_rows_*, followed by finish_rows_*: several blocks per row, for few or long rows. The second
// kernel reads the logits again, from the L2 cache at the sizes that the two are meant for.
// Each kernel exists with and without a bias.
//
// Shapes: B examples, L tokens, M rows, V vocabulary, N banned ids, S slices of a row.
// The order of every sum is fixed, so two runs give the same bits.
#include "row_results.cuh"

namespace masktuning {

// The scratch memory of a row: S maxima, S sums, the logit of the target, then S * top_k values and as
// many indices.
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

// Overwrites the logits of the tile, which starts at element `first` of its row, by (p - onehot) *
// gradient_scale.
template <typename Tile>
__device__ __forceinline__ void write_gradient(const RowArguments& a, Tile& tile, i64 first,
                                               const RowSum& row, i64 target, float x_target) {
  if (target == kIgnoreIndex) {
    tile.replace([](float) { return 0.0f; });
    return;
  }
  const bool bad = row.broken || !in_vocabulary(a, target);
  const float shift = row.shift, factor = bad ? MT_NAN : __fdividef(a.gradient_scale, row.sum);
  tile.replace([=](float x) { return fast_exp2((x - shift) * kLog2e) * factor; });
  const i64 index = target - first;
  if (bad || !tile.contains(index) || tile.owner((int)index) != (int)threadIdx.x) return;
  // Written by the thread that wrote p there. The 1 is subtracted in float32, before any rounding to 16
  // bits.
  const float term = fast_exp2((x_target - shift) * kLog2e);
  Tile::P::store(tile.row + index, (term - row.sum) * __fdividef(a.gradient_scale, row.sum));
}

template <typename T, int THREADS, int VECTORS, bool BIAS>
__device__ __forceinline__ void substitute_rows(const RowArguments& a) {
  typedef RowTile<T, THREADS, VECTORS, BIAS> Tile;
  __shared__ Candidates c;
  __shared__ RowFacts facts;
  __shared__ u32 banned_bits[Banned<Tile>::kWords];
  const i64 m = blockIdx.x;
  // All loads that depend on no other are started before one of them is waited for.
  const i64 target = load_early(a.targets_M + m), position = load_early(a.positions_M + m);
  const i64 next = load_next_position(a, m);
  Tile tile(static_cast<T*>(a.logits_MV) + m * a.row_stride, (int)a.V, static_cast<const T*>(a.bias_V));
  const Banned<Tile> banned(banned_bits, tile, a.banned_ids_N, a.N, a.tokenizer_size, 0);
  if (threadIdx.x == 0) {
    facts.target = target;
    facts.x_target = tile.contains(target) ? tile.element(target) : 0.0f;
  }
  if (threadIdx.x == kWarp) fetch_place(a, position, facts);
  copy_text(a, m, position, next, THREADS);
  tile.add_bias();
  float largest, allowed, tau;
  find_maxima(tile, banned, &largest, &allowed);
  const float max = find_threshold<THREADS>(c, largest, allowed, a.top_k, &tau);
  RowSum sum;
  sum.shift = max == -MT_INFINITY ? 0.0f : max;
  sum.sum = sum_and_collect(c, tile, sum.shift, tau, banned, 0);
  sum.broken = !(sum.sum < MT_INFINITY) || max == MT_INFINITY;
  const int n = choose(c, tile, banned, 0, a.top_k);
  __syncthreads();
  // The gradient comes first, so that its stores are under way during the draw.
  if (a.gradient_scale != 0.0f) write_gradient(a, tile, 0, sum, facts.target, facts.x_target);
  if (threadIdx.x == 0) write_loss(a, m, sum, facts.target, facts.x_target);
  if (threadIdx.x < kWarp) write_token(a, m, c, n, sum.broken, facts);
}

// The slice of row m that starts at element `first`.
template <typename Tile>
__device__ __forceinline__ Tile slice_of_row(const RowArguments& a, i64 m, i64 first) {
  typedef typename Tile::Element T;
  const i64 left = a.V - first;
  const T* bias = a.bias_V == nullptr ? nullptr : static_cast<const T*>(a.bias_V) + first;
  return Tile(static_cast<T*>(a.logits_MV) + m * a.row_stride + first,
              (int)(left < a.slice_length ? left : a.slice_length), bias);
}

// Block (m, s) finds the maximum, the sum and the k largest logits of slice s of row m, and the logit of
// the target if the slice contains it.
template <typename T, int THREADS, int VECTORS, bool BIAS>
__device__ __forceinline__ void split_rows(const RowArguments& a) {
  typedef RowTile<T, THREADS, VECTORS, BIAS> Tile;
  __shared__ Candidates c;
  __shared__ u32 banned_bits[Banned<Tile>::kWords];
  const i64 m = blockIdx.x, s = blockIdx.y, first = s * a.slice_length;
  const Slices slices(a, m);
  const i64 target = load_early(a.targets_M + m) - first;
  Tile tile = slice_of_row<Tile>(a, m, first);
  const Banned<Tile> banned(banned_bits, tile, a.banned_ids_N, a.N, a.tokenizer_size, first);
  if (threadIdx.x == 0 && tile.contains(target)) *slices.target = tile.element(target);
  tile.add_bias();
  float largest, allowed, tau;
  find_maxima(tile, banned, &largest, &allowed);
  const float max = find_threshold<THREADS>(c, largest, allowed, a.top_k, &tau);
  const float shift = max == -MT_INFINITY ? 0.0f : max;
  const float sum = sum_and_collect(c, tile, shift, tau, banned, (int)first);
  const int n = choose(c, tile, banned, (int)first, a.top_k);
  __syncthreads();
  if (threadIdx.x == 0) {
    slices.max[s] = max;
    slices.sum[s] = sum;
  }
#pragma unroll 1
  for (int j = threadIdx.x; j < a.top_k; j += THREADS) {
    slices.value[s * a.top_k + j] = j < n ? c.top_value[j] : -MT_INFINITY;
    slices.index[s * a.top_k + j] = j < n ? c.top_index[j] : kNoIndex;
  }
}

// The sum of a row from the sums of its slices, in their order.
__device__ __forceinline__ RowSum add_slices(const RowArguments& a, const Slices& slices) {
  float max = -MT_INFINITY;
#pragma unroll 1
  for (i64 j = 0; j < a.S; ++j) max = fmaxf(max, slices.max[j]);
  RowSum row;
  row.shift = max == -MT_INFINITY ? 0.0f : max;
  row.sum = 0.0f;
#pragma unroll 1
  for (i64 j = 0; j < a.S; ++j) {
    if (slices.sum[j] == 0.0f) continue;  // a slice of nothing but -inf has no scale
    const float shift = slices.max[j] == -MT_INFINITY ? 0.0f : slices.max[j];
    row.sum += slices.sum[j] * fast_exp2((shift - row.shift) * kLog2e);
  }
  row.broken = !(row.sum < MT_INFINITY) || max == MT_INFINITY;
  return row;
}

// Every block adds up the slices of its row and writes its slice of the gradient. The first block of a
// row also writes loss and token.
template <typename T, int THREADS, int VECTORS, bool BIAS>
__device__ __forceinline__ void finish_rows(const RowArguments& a) {
  typedef RowTile<T, THREADS, VECTORS, BIAS> Tile;
  __shared__ Candidates c;
  __shared__ RowFacts facts;
  if (a.gradient_scale == 0.0f && blockIdx.y != 0) return;
  const i64 m = blockIdx.x, first = blockIdx.y * a.slice_length;
  Tile tile = slice_of_row<Tile>(a, m, first);  // its loads are under way during what follows
  const Slices slices(a, m);
  const RowSum sum = add_slices(a, slices);
  const i64 target = a.targets_M[m];
  const float x_target = in_vocabulary(a, target) ? *slices.target : 0.0f;
  if (blockIdx.y == 0) {
    const int n = (int)a.S * a.top_k;
    const i64 position = a.positions_M[m];
    copy_text(a, m, position, load_next_position(a, m), THREADS);
    if (threadIdx.x == kWarp) fetch_place(a, position, facts);
    if (threadIdx.x == 0) c.count = 0;
    __syncthreads();
    int found = 0;
#pragma unroll 1
    for (int j = threadIdx.x; j < n; j += THREADS) found += slices.index[j] != kNoIndex ? 1 : 0;
    if (found != 0) atomicAdd(&c.count, found);
    rank_candidates<THREADS>(c, slices.value, slices.index, n, a.top_k);
    __syncthreads();
    const int kept = c.count < a.top_k ? c.count : a.top_k;
    if (threadIdx.x == 0) write_loss(a, m, sum, target, x_target);
    if (threadIdx.x < kWarp) write_token(a, m, c, kept, sum.broken, facts);
  }
  if (a.gradient_scale == 0.0f) return;
  tile.add_bias();
  write_gradient(a, tile, first, sum, target, x_target);
}

}  // namespace masktuning

#define MT_KERNEL(PART, NAME, T, THREADS, VECTORS, BLOCKS, BIAS, SUFFIX)                \
  extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void                          \
      PART##_rows_##NAME##_##THREADS##x##VECTORS##SUFFIX(masktuning::RowArguments a) {   \
    masktuning::PART##_rows<masktuning::T, THREADS, VECTORS, BIAS>(a);                   \
  }
#define MT_BOTH(PART, NAME, T, THREADS, VECTORS, BLOCKS)                \
  MT_KERNEL(PART, NAME, T, THREADS, VECTORS, BLOCKS, false, )           \
  MT_KERNEL(PART, NAME, T, THREADS, VECTORS, BLOCKS, true, _bias)
#define MT_ROWS(NAME, T, THREADS, VECTORS, BLOCKS) \
  MT_BOTH(substitute, NAME, T, THREADS, VECTORS, BLOCKS)
#define MT_SPLIT(NAME, T, THREADS, VECTORS, BLOCKS)      \
  MT_BOTH(split, NAME, T, THREADS, VECTORS, BLOCKS)      \
  MT_BOTH(finish, NAME, T, THREADS, VECTORS, BLOCKS)

// Threads x vectors. In 16 bits these hold rows of up to 4,096, 32,768 and 57,344 logits; in 32 bits of
// up to 2,048, 30,720 and 51,200. masktuning/ops/token_substitution_kernels.py chooses by these names.
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

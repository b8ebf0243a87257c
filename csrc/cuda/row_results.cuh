// The outputs of a row: loss, log-sum-exp, token, and the part of the text that its block copies.
//
// Shapes: B examples, L tokens, M rows, V vocabulary, N banned ids, S slices of a row.
#pragma once

#include "draw.cuh"

namespace masktuning {

constexpr i64 kIgnoreIndex = -100;

// Packed by the Python file of the op, in this order.
struct RowArguments {
  void* logits_MV;
  const void* bias_V;  // null without a bias, which must be aligned as the rows are
  const i64 *positions_M, *targets_M, *example_ids_B, *rng_2, *banned_ids_N, *input_ids_BL;
  float* losses_M;
  i64 *tokens_M, *filled_ids_BL;
  float *lse_M, *slices;  // slices: the scratch memory of the rows, see Slices
  i64 V, row_stride, BL, L, N, tokenizer_size, S, slice_length;
  int top_k;
  float draw_scale, gradient_scale;  // gradient_scale 0 leaves the logits
};

// What is known of a row when all of it has been read.
struct RowSum {
  float shift, sum;  // sum of e^(x - shift)
  bool broken;       // NaN or +inf among the logits
};

// What the last part of a row needs from elsewhere, in shared memory. It is fetched at the start, while
// the row is being loaded, because these loads depend on each other.
struct RowFacts {
  i64 target, position, original;  // position: -1 if no token is to be written
  float x_target;
  u32 word;  // the random number
};

__device__ __forceinline__ bool in_vocabulary(const RowArguments& a, i64 target) {
  return target >= 0 && target < a.V;
}

// Called by one thread, after load_early: where the token of the row goes, which token is there, and
// the random number.
__device__ __forceinline__ void fetch_place(const RowArguments& a, i64 position, RowFacts& facts) {
  const bool inside = position >= 0 && position < a.BL;
  facts.position = inside ? position : -1;
  facts.original = inside ? a.input_ids_BL[position] : -1;
  if (!inside || a.top_k <= 1) return;
  // A division in 64 bits would need registers that hold the row.
  const u32 b = (u32)position / (u32)a.L, t = (u32)position % (u32)a.L;
  const u64 seed = (u64)a.rng_2[0];
  facts.word = philox4x32_10(t, (u32)a.example_ids_B[b], (u32)a.rng_2[1], kStreamSubstitution,
                             (u32)seed, (u32)(seed >> 32)).w0;
}

// The next row's position, or -1 after the last row.
__device__ __forceinline__ i64 load_next_position(const RowArguments& a, i64 m) {
  return m + 1 < gridDim.x ? load_early(a.positions_M + m + 1) : -1;
}

// Copies the text from the position of this row to that of the next row, so that the rows together copy
// all of it but the masked tokens, and no launch is needed for a copy. Positions ascend. If they do not,
// which cannot be checked on a GPU without waiting for it, the copy goes on to the end of the text. Then
// no token is left unwritten, but a masked token may keep its original.
__device__ __forceinline__ void copy_text(const RowArguments& a, i64 m, i64 position, i64 next,
                                          int threads) {
  const bool inside = position >= 0 && position < a.BL;
  if (m != 0 && !inside) return;
  const i64 end = inside && next > position && next < a.BL ? next : a.BL;
  // The last thread of the block takes the first token: the first warps have other loads to wait for.
  const i64 begin = m == 0 ? 0 : position + 1;
#pragma unroll 1
  for (i64 p = begin + (threads - 1 - (int)threadIdx.x); p < end; p += threads) {
    if (p != position) a.filled_ids_BL[p] = a.input_ids_BL[p];
  }
}

// Called by thread 0: loss and log-sum-exp. A target outside the vocabulary gives NaN.
__device__ __forceinline__ void write_loss(const RowArguments& a, i64 m, const RowSum& row,
                                           i64 target, float x_target) {
  const float log_sum = logf(row.sum);
  const bool bad = row.broken || !in_vocabulary(a, target);
  a.lse_M[m] = row.broken ? MT_NAN : log_sum + row.shift;
  a.losses_M[m] = target == kIgnoreIndex ? 0.0f : bad ? MT_NAN : log_sum - (x_target - row.shift);
}

// Called by the first warp: the token of a row, from the n largest logits in c.
__device__ __forceinline__ void write_token(const RowArguments& a, i64 m, const Candidates& c, int n,
                                            bool broken, const RowFacts& facts) {
  i64 token = facts.original;
  if (facts.position >= 0 && !broken && n > 0) {
    token = a.top_k > 1 ? draw_among(c, n, a.draw_scale, facts.word) : c.top_index[0];
  }
  if (threadIdx.x != 0) return;
  a.tokens_M[m] = token;
  if (facts.position >= 0) a.filled_ids_BL[facts.position] = token;
}

}  // namespace masktuning

// substitute_tokens on the CPU. Shapes: B examples, L tokens, M rows, V vocabulary, N banned ids.
#pragma once

#include <cstdint>

#include "half.h"

namespace masktuning {

struct SubstitutionInputs {
  void* logits_MV;
  Dtype dtype;
  int64_t M, V, row_stride;  // the stride in elements
  const int64_t* positions_M;
  const int64_t* targets_M;
  const int64_t* example_ids_B;
  const int64_t* rng_2;         // seed, epoch
  const int64_t* banned_ids_N;  // null for none
  int64_t N, BL, L;
  int64_t tokenizer_size;  // ids from this one on may not be substituted either
  int top_k;
  float draw_scale;      // log2(e) / temperature
  float gradient_scale;  // 0 leaves the logits; else (p - onehot) * scale overwrites them
};

struct SubstitutedTokens {
  float* losses_M;
  int64_t* tokens_M;
  int64_t* input_ids_BL;  // holds the original tokens, some of which are overwritten
  float* lse_M;
};

// Reads each row once (and writes it once, for the gradient): log-sum-exp, loss, the top_k largest
// logits, the draw among them and the scatter into the text. Rows are split among threads. The order
// of every sum is fixed, so the result is the same for any number of threads and any processor.
//
// Throws std::invalid_argument if a target, position or banned id is out of range, or if the positions
// do not ascend. Nothing has been written then.
void substitute_tokens(const SubstitutionInputs& in, int threads, const SubstitutedTokens& out);

}  // namespace masktuning

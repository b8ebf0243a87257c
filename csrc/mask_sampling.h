// sample_masks on the CPU. Shapes: B examples, L tokens, M masked positions; all arrays contiguous.
#pragma once

#include <cstdint>

namespace masktuning {

struct MaskSamplingInputs {
  const int64_t* input_ids_BL;
  const int64_t* example_ids_B;
  const int64_t* rng_2;              // seed, epoch
  const int64_t* replacement_ids_N;  // null: every masked token is replaced by the mask
  int64_t B, L, N;
  int64_t mask_token_id;
};

struct MaskedTokens {
  int64_t* input_ids_BL;
  int64_t* positions_M;
  int64_t* targets_M;
};

// The policy `exact`: masks, in row i, the offsets[i+1] - offsets[i] maskable tokens with the smallest
// (draw, t). Output slots from offsets[B] on get position -1 and target -100.
// Throws std::invalid_argument if the offsets do not fit the maskable tokens or num_masked.
void sample_masks_exact(const MaskSamplingInputs& in, const bool* maskable_BL,
                        const int64_t* offsets_B1, int64_t num_masked, int threads,
                        const MaskedTokens& out);

// The policy `threshold`: masks every token whose draw is below its threshold. The arrays of positions
// and targets have room for B * L entries. Returns how many of them were written.
int64_t sample_masks_threshold(const MaskSamplingInputs& in, const int64_t* thresholds_BL,
                               int threads, const MaskedTokens& out);

}  // namespace masktuning

#include "mask_sampling.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "multiversion.h"
#include "parallel.h"
#include "philox.h"

namespace masktuning {
namespace {

constexpr int64_t kIgnoreIndex = -100;
constexpr u64 kShowMaskBelow = 3435973837ull;    // round(0.8 * 2^32)
constexpr u64 kShowRandomBelow = 3865470566ull;  // round(0.9 * 2^32)

// Word 0 of every token of one row. There are no branches, so that compilers vectorise it.
MT_MULTIVERSION
void draw_row(u32 example_id, u32 epoch, u32 stream, u32 k0, u32 k1, int64_t L, u32* draws_L) {
  for (int64_t t = 0; t < L; ++t) {
    draws_L[t] = philox4x32_10(static_cast<u32>(t), example_id, epoch, stream, k0, k1).w0;
  }
}

struct Key {
  u32 lo, hi, epoch;
  explicit Key(const int64_t* rng)
      : lo(static_cast<u32>(rng[0])),
        hi(static_cast<u32>(static_cast<u64>(rng[0]) >> 32)),
        epoch(static_cast<u32>(rng[1])) {}
};

// What replaces a masked token: the mask or, if there are replacement ids, sometimes one of them or
// the token itself.
int64_t shown_token(const MaskSamplingInputs& in, const Key& key, u32 example_id, int64_t t,
                    int64_t original) {
  if (in.replacement_ids_N == nullptr) return in.mask_token_id;
  const Words words = philox4x32_10(static_cast<u32>(t), example_id, key.epoch, kStreamCorruption,
                                    key.lo, key.hi);
  if (words.w0 < kShowMaskBelow) return in.mask_token_id;
  if (words.w0 < kShowRandomBelow) {
    return in.replacement_ids_N[(static_cast<u64>(words.w1) * static_cast<u64>(in.N)) >> 32];
  }
  return original;
}

// Writes one masked token, token t of row b, to slot `slot` of the outputs.
void emit(const MaskSamplingInputs& in, const MaskedTokens& out, const Key& key, int64_t b,
          int64_t t, int64_t slot) {
  const int64_t flat = b * in.L + t;
  const int64_t original = in.input_ids_BL[flat];
  out.positions_M[slot] = flat;
  out.targets_M[slot] = original;
  out.input_ids_BL[flat] =
      shown_token(in, key, static_cast<u32>(in.example_ids_B[b]), t, original);
}

}  // namespace

void sample_masks_exact(const MaskSamplingInputs& in, const bool* maskable_BL,
                        const int64_t* offsets_B1, int64_t num_masked, int threads,
                        const MaskedTokens& out) {
  if (offsets_B1[0] != 0 || offsets_B1[in.B] > num_masked) {
    throw std::invalid_argument("offsets must start at 0 and end at or below num_masked (" +
                                std::to_string(num_masked) + "), but end at " +
                                std::to_string(offsets_B1[in.B]));
  }
  for (int64_t b = 0; b < in.B; ++b) {
    const bool* row = maskable_BL + b * in.L;
    const int64_t maskable = std::accumulate(row, row + in.L, int64_t{0});
    const int64_t wanted = offsets_B1[b + 1] - offsets_B1[b];
    if (wanted < 0 || wanted > maskable) {
      throw std::invalid_argument("offsets ask for " + std::to_string(wanted) +
                                  " masked tokens in row " + std::to_string(b) + ", which has " +
                                  std::to_string(maskable) + " maskable ones");
    }
  }
  std::copy(in.input_ids_BL, in.input_ids_BL + in.B * in.L, out.input_ids_BL);
  const Key key(in.rng_2);
  parallel_rows(in.B, in.L, threads, [&](int64_t begin, int64_t end) {
    std::vector<u32> draws_L(in.L);
    std::vector<u64> keys;
    keys.reserve(in.L);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t count = offsets_B1[b + 1] - offsets_B1[b];
      if (count == 0) continue;
      draw_row(static_cast<u32>(in.example_ids_B[b]), key.epoch, kStreamMasking, key.lo, key.hi,
               in.L, draws_L.data());
      // (draw, t) in one word, so that comparing words compares draws first and positions second.
      keys.clear();
      const bool* row = maskable_BL + b * in.L;
      for (int64_t t = 0; t < in.L; ++t) {
        if (row[t]) keys.push_back((static_cast<u64>(draws_L[t]) << 32) | static_cast<u64>(t));
      }
      std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end());
      for (int64_t j = 0; j < count; ++j) keys[j] &= 0xffffffffull;
      std::sort(keys.begin(), keys.begin() + count);
      for (int64_t j = 0; j < count; ++j) {
        emit(in, out, key, b, static_cast<int64_t>(keys[j]), offsets_B1[b] + j);
      }
    }
  });
  std::fill(out.positions_M + offsets_B1[in.B], out.positions_M + num_masked, int64_t{-1});
  std::fill(out.targets_M + offsets_B1[in.B], out.targets_M + num_masked, kIgnoreIndex);
}

int64_t sample_masks_threshold(const MaskSamplingInputs& in, const int64_t* thresholds_BL,
                               int threads, const MaskedTokens& out) {
  std::copy(in.input_ids_BL, in.input_ids_BL + in.B * in.L, out.input_ids_BL);
  const Key key(in.rng_2);
  std::vector<u32> draws_BL(in.B * in.L);
  parallel_rows(in.B, in.L, threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      draw_row(static_cast<u32>(in.example_ids_B[b]), key.epoch, kStreamMasking, key.lo, key.hi,
               in.L, draws_BL.data() + b * in.L);
    }
  });
  int64_t filled = 0;
  for (int64_t b = 0; b < in.B; ++b) {
    for (int64_t t = 0; t < in.L; ++t) {
      const int64_t flat = b * in.L + t;
      if (static_cast<int64_t>(draws_BL[flat]) < thresholds_BL[flat]) {
        emit(in, out, key, b, t, filled++);
      }
    }
  }
  return filled;
}

}  // namespace masktuning

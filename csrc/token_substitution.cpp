#include "token_substitution.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "candidates.h"
#include "half.h"
#include "multiversion.h"
#include "parallel.h"
#include "philox.h"

namespace masktuning {
namespace {

constexpr int64_t kIgnoreIndex = -100;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kLanes = 64;  // of running sums and maxima; no processor has wider vectors

// From here on compilers may fuse a product and a sum, which halves the cost of the exponential. The
// draw in candidates.h must not be compiled so, because it has to round as PyTorch and CUDA do.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#endif

// e^d for d <= 0, within 2 ulp. From -87 down it is 1e-38, which is nothing next to the largest term
// of the row, 1. NaN stays NaN. There are no branches, so that compilers vectorise it.
MT_ALWAYS_INLINE float exp_nonpositive(float d) {
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = d < -87.0f ? -87.0f : d;
  const float biased = clamped * 1.44269504f + shifter;
  const float n = biased - shifter;
  const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.98756917e-4f;
  p = p * r + 1.39819994e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 0.166666657f;
  p = p * r + 0.5f;
  p = p * (r * r) + (r + 1.0f);
  return p * bits_to_float((float_to_bits(biased) << 23) + 0x3f800000u);  // 2^n
}

// Converts a row to float32.
template <typename T>
MT_ALWAYS_INLINE void widen(const T* row, int64_t V, float* x) {
  for (int64_t v = 0; v < V; ++v) x[v] = to_float(row[v]);
}

MT_MULTIVERSION void widen_float32(const float* row, int64_t V, float* x) { widen(row, V, x); }
MT_MULTIVERSION void widen_float16(const Float16* row, int64_t V, float* x) { widen(row, V, x); }
MT_MULTIVERSION void widen_bfloat16(const BFloat16* row, int64_t V, float* x) { widen(row, V, x); }

// The largest value of each of kLanes interleaved parts of the row.
MT_MULTIVERSION void lane_maxima(const float* x, int64_t V, float* maxima) {
  float lanes[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) lanes[j] = -kInfinity;
  int64_t v = 0;
  for (; v + kLanes <= V; v += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = lanes[j] > x[v + j] ? lanes[j] : x[v + j];
  }
  for (int64_t j = 0; v + j < V; ++j) lanes[j] = lanes[j] > x[v + j] ? lanes[j] : x[v + j];
  std::copy(lanes, lanes + kLanes, maxima);
}

template <typename T>
MT_ALWAYS_INLINE void narrow(const float* x, int64_t V, float factor, T* row) {
  for (int64_t v = 0; v < V; ++v) from_float(x[v] * factor, row[v]);
}

MT_MULTIVERSION void narrow_float32(const float* x, int64_t V, float f, float* row) {
  narrow(x, V, f, row);
}
MT_MULTIVERSION void narrow_float16(const float* x, int64_t V, float f, Float16* row) {
  narrow(x, V, f, row);
}
MT_MULTIVERSION void narrow_bfloat16(const float* x, int64_t V, float f, BFloat16* row) {
  narrow(x, V, f, row);
}

void widen_row(const float* row, int64_t V, float* x) { widen_float32(row, V, x); }
void widen_row(const Float16* row, int64_t V, float* x) { widen_float16(row, V, x); }
void widen_row(const BFloat16* row, int64_t V, float* x) { widen_bfloat16(row, V, x); }
void narrow_row(const float* x, int64_t V, float f, float* row) { narrow_float32(x, V, f, row); }
void narrow_row(const float* x, int64_t V, float f, Float16* row) { narrow_float16(x, V, f, row); }
void narrow_row(const float* x, int64_t V, float f, BFloat16* row) { narrow_bfloat16(x, V, f, row); }

// Returns the sum of e^(x - m), and hands the values that are at least tau to `top`. With `store` the
// terms of the sum replace x.
template <bool store>
MT_ALWAYS_INLINE float exp_sum(float* x, int64_t V, float m, float tau, Largest& top) {
  float sums[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) sums[j] = 0.0f;
  for (int64_t v = 0; v < V; v += kLanes) {
    const int64_t n = std::min(kLanes, V - v);
    float block[kLanes];
    if (n == kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) block[j] = x[v + j];
    } else {
      for (int64_t j = 0; j < kLanes; ++j) block[j] = j < n ? x[v + j] : -kInfinity;
    }
    int reaching = 0;
    for (int64_t j = 0; j < kLanes; ++j) reaching += block[j] >= tau ? 1 : 0;
    if (reaching != 0) top.take(block, n, v, tau);
    for (int64_t j = 0; j < kLanes; ++j) block[j] = exp_nonpositive(block[j] - m);
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += block[j];
    if (store && n == kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) x[v + j] = block[j];
    } else if (store) {
      std::copy(block, block + n, x + v);
    }
  }
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}

MT_MULTIVERSION float exp_sum_and_store(float* x, int64_t V, float m, float tau, Largest& top) {
  return exp_sum<true>(x, V, m, tau, top);
}
MT_MULTIVERSION float exp_sum_only(float* x, int64_t V, float m, float tau, Largest& top) {
  return exp_sum<false>(x, V, m, tau, top);
}

template <typename T>
class RowKernel {
 public:
  RowKernel(const SubstitutionInputs& in, const BannedIds& banned, const SubstitutedTokens& out)
      : in_(in), banned_(banned), out_(out), banned_values_(banned.ids.size()),
        top_(banned, in.top_k) {}

  void run(int64_t m) {
    T* row = static_cast<T*>(in_.logits_MV) + m * in_.row_stride;
    float* x = work_row(row);
    const int64_t target = in_.targets_M[m];
    const bool ignored = target == kIgnoreIndex;
    const float x_target = ignored ? 0.0f : x[target];

    // The largest allowed value, and tau, which at least k allowed values reach: the k-th largest of
    // the maxima of the lanes. Banned ids are taken out for this only; they stay in the sum.
    float maxima[kLanes];
    lane_maxima(x + banned_.limit, in_.V - banned_.limit, maxima);
    float banned_max = *std::max_element(maxima, maxima + kLanes);
    for (size_t n = 0; n < banned_values_.size(); ++n) {
      float& value = x[banned_.ids[n]];
      banned_values_[n] = value;
      banned_max = std::max(banned_max, value);
      value = -kInfinity;
    }
    lane_maxima(x, banned_.limit, maxima);
    for (size_t n = 0; n < banned_values_.size(); ++n) x[banned_.ids[n]] = banned_values_[n];
    std::nth_element(maxima, maxima + (in_.top_k - 1), maxima + kLanes, std::greater<float>());
    const float tau = maxima[in_.top_k - 1];
    const float best = *std::max_element(maxima, maxima + in_.top_k);

    const float max = std::max(best, banned_max);
    const float shift = max == -kInfinity ? 0.0f : max;
    const bool gradient = in_.gradient_scale != 0.0f;
    top_.found.clear();
    float sum = gradient ? exp_sum_and_store(x, in_.V, shift, tau, top_)
                         : exp_sum_only(x, in_.V, shift, tau, top_);
    const bool empty = max == -kInfinity;  // exp_nonpositive never gives 0
    if (empty) sum = 0.0f;
    const float log_sum = std::log(sum);
    const bool broken = !(sum < kInfinity) || max == kInfinity;  // NaN, or +inf among the logits
    const float nan = std::numeric_limits<float>::quiet_NaN();
    out_.lse_M[m] = broken ? nan : log_sum + shift;
    out_.losses_M[m] = ignored ? 0.0f : broken ? nan : log_sum - (x_target - shift);
    substitute(m, !broken && best > -kInfinity);
    if (gradient) write_gradient(row, x, target, ignored, broken || empty ? nan : sum);
  }

 private:
  // The row as float32: in place if the logits are float32 and may be overwritten, else a copy.
  float* work_row(T* row) {
    if constexpr (std::is_same_v<T, float>) {
      if (in_.gradient_scale != 0.0f) return row;
    }
    scratch_.resize(in_.V);
    widen_row(row, in_.V, scratch_.data());
    return scratch_.data();
  }

  void substitute(int64_t m, bool usable) {
    const int64_t position = in_.positions_M[m];
    if (position < 0) {
      out_.tokens_M[m] = -1;
      return;
    }
    int64_t token = out_.input_ids_BL[position];
    if (usable) {
      token = top_.found[0].index;
      if (in_.top_k > 1) {
        const u64 seed = static_cast<u64>(in_.rng_2[0]);
        const Words words = philox4x32_10(
            static_cast<u32>(position % in_.L),
            static_cast<u32>(in_.example_ids_B[position / in_.L]), static_cast<u32>(in_.rng_2[1]),
            kStreamSubstitution, static_cast<u32>(seed), static_cast<u32>(seed >> 32));
        token = draw_among(top_.found, in_.draw_scale, words.w0);
      }
    }
    out_.tokens_M[m] = token;
    out_.input_ids_BL[position] = token;
  }

  void write_gradient(T* row, float* x, int64_t target, bool ignored, float sum) {
    if (ignored) {
      for (int64_t v = 0; v < in_.V; ++v) from_float(0.0f, row[v]);
      return;
    }
    const float target_term = x[target];
    narrow_row(x, in_.V, in_.gradient_scale / sum, row);
    // The 1 is subtracted in float32, before any rounding to 16 bits.
    from_float((target_term - sum) / sum * in_.gradient_scale, row[target]);
  }

  const SubstitutionInputs& in_;
  const BannedIds& banned_;
  const SubstitutedTokens& out_;
  std::vector<float> scratch_;
  std::vector<float> banned_values_;
  Largest top_;
};

template <typename T>
void run_rows(const SubstitutionInputs& in, int threads, const SubstitutedTokens& out) {
  const BannedIds banned(in.banned_ids_N, in.N, std::min(in.tokenizer_size, in.V));
  parallel_rows(in.M, in.V, threads, [&](int64_t begin, int64_t end) {
    RowKernel<T> kernel(in, banned, out);
    for (int64_t m = begin; m < end; ++m) kernel.run(m);
  });
}

// The messages are those of masktuning/ops/masked_rows.py, which checks for the reference.
void check_values(const SubstitutionInputs& in) {
  const auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
  const std::string vocabulary = "the vocabulary of " + std::to_string(in.V);
  for (int64_t m = 0; m < in.M; ++m) {
    const int64_t target = in.targets_M[m], position = in.positions_M[m];
    if (target != kIgnoreIndex && (target < 0 || target >= in.V)) {
      fail("targets holds " + std::to_string(target) + ", outside " + vocabulary);
    }
    if (position >= in.BL) fail("positions must be below B * L = " + std::to_string(in.BL));
    const int64_t before = m > 0 ? in.positions_M[m - 1] : 0;
    if (position < -1 || (m > 0 && position >= 0 && (before < 0 || position <= before))) {
      fail("positions must ascend, as those of sample_masks do, with -1 at the end only");
    }
  }
  for (int64_t n = 0; n < in.N; ++n) {
    if (in.banned_ids_N[n] < 0 || in.banned_ids_N[n] >= in.V) {
      fail("banned_ids must lie in " + vocabulary);
    }
  }
}

}  // namespace

void substitute_tokens(const SubstitutionInputs& in, int threads, const SubstitutedTokens& out) {
  check_values(in);
  switch (in.dtype) {
    case Dtype::kFloat32:
      return run_rows<float>(in, threads, out);
    case Dtype::kFloat16:
      return run_rows<Float16>(in, threads, out);
    case Dtype::kBFloat16:
      return run_rows<BFloat16>(in, threads, out);
  }
}

}  // namespace masktuning

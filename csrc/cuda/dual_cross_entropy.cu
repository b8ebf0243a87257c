// dual_cross_entropy on a GPU, by one block. The order of every sum is fixed.
// Shapes: B examples, C classes, M masked positions.
#include "row_tile.cuh"

namespace masktuning {

constexpr int kThreads = 256;

// Packed by masktuning/ops/dual_cross_entropy.py, in this order.
struct DualArguments {
  const float* losses_M;
  const void* logits_BC;
  const i64* labels_B;
  const float* denominators_2;
  float *terms_4, *gradient_BC;
  i64 M, B, C, ignore_index;
  double alpha, label_smoothing;
};

// The sums of two numbers over the block, in a fixed order; thread 0 gets them.
__device__ __forceinline__ void block_sums(double* first, double* second) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ double firsts[kWarps], seconds[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    *first += __shfl_xor_sync(kAllLanes, *first, step);
    *second += __shfl_xor_sync(kAllLanes, *second, step);
  }
  if (lane == 0) {
    firsts[warp] = *first;
    seconds[warp] = *second;
  }
  __syncthreads();
  *first = *second = 0.0;
  for (int w = 0; w < kWarps; ++w) {
    *first += firsts[w];
    *second += seconds[w];
  }
}

// Returns the loss of example b, and writes its gradient divided by the number of labels.
template <typename T>
__device__ __forceinline__ double example(const DualArguments& a, i64 b, float row_scale) {
  const T* x = static_cast<const T*>(a.logits_BC) + b * a.C;
  float* gradient = a.gradient_BC + b * a.C;
  const i64 label = a.labels_B[b];
  const bool ignored = label == a.ignore_index, bad = label < 0 || label >= a.C;
  if (ignored || bad) {  // a label outside the classes gives NaN
    for (i64 c = 0; c < a.C; ++c) gradient[c] = ignored ? 0.0f : MT_NAN;
    return ignored ? 0.0 : (double)MT_NAN;
  }
  float max = -MT_INFINITY;
  for (i64 c = 0; c < a.C; ++c) max = fmaxf(max, Packing<T>::load(x + c));
  float sum = 0.0f;
  double shifted = 0.0;
  for (i64 c = 0; c < a.C; ++c) {
    const float d = Packing<T>::load(x + c) - max;
    sum += expf(d);
    shifted += d;
  }
  const float log_sum = logf(sum), smoothing = (float)a.label_smoothing;
  for (i64 c = 0; c < a.C; ++c) {
    // The smoothed target is 1 - s on the label, plus s / C on every class.
    const float wanted = __fdividef(smoothing, (float)a.C) + (c == label ? 1.0f - smoothing : 0.0f);
    gradient[c] = (__fdividef(expf(Packing<T>::load(x + c) - max), sum) - wanted) * row_scale;
  }
  const double of_label = (double)log_sum - (Packing<T>::load(x + label) - max);
  if (a.label_smoothing == 0.0) return of_label;  // 0 * inf, which a logit of -inf leads to, would be NaN
  return (1.0 - a.label_smoothing) * of_label +
         a.label_smoothing * (log_sum - __fdividef((float)shifted, (float)a.C));
}

template <typename T>
__device__ __forceinline__ void dual(const DualArguments& a) {
  const float masked = a.denominators_2[0], labels = a.denominators_2[1];
  double mlm = 0.0, classification = 0.0;
  for (i64 m = threadIdx.x; m < a.M; m += kThreads) mlm += a.losses_M[m];
  for (i64 b = threadIdx.x; b < a.B; b += kThreads) {
    classification += example<T>(a, b, labels > 0.0f ? __fdividef(1.0f, labels) : 0.0f);
  }
  block_sums(&mlm, &classification);
  if (threadIdx.x != 0) return;
  // Divisions here and above are the fast ones: an exact one is a function call, which spills registers.
  mlm = masked > 0.0f ? __fdividef((float)mlm, masked) : mlm * 0.0;
  classification = labels > 0.0f ? __fdividef((float)classification, labels) : classification * 0.0;
  a.terms_4[3] = masked > 0.0f ? __fdividef(1.0f, masked) : 0.0f;
  a.terms_4[0] = (float)(a.alpha * mlm + (1.0 - a.alpha) * classification);
  a.terms_4[1] = (float)mlm;
  a.terms_4[2] = (float)classification;
}

}  // namespace masktuning

#define MT_DUAL(NAME, T)                                                          \
  extern "C" __global__ __launch_bounds__(256) void dual_cross_entropy_##NAME(    \
      masktuning::DualArguments a) {                                              \
    masktuning::dual<T>(a);                                                       \
  }
MT_DUAL(float32, float)
MT_DUAL(float16, masktuning::Half)
MT_DUAL(bfloat16, masktuning::BFloat16)

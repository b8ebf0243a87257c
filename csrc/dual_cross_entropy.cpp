#include "dual_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace masktuning {

void dual_cross_entropy(const DualInputs& in, float* terms_4, float* gradient_BC) {
  double mlm_sum = 0.0;
  for (int64_t m = 0; m < in.M; ++m) mlm_sum += in.losses_M[m];
  const double labels = in.denominators_2[1];
  const double row_scale = labels > 0.0 ? 1.0 / labels : 0.0;
  const double off = in.label_smoothing / static_cast<double>(in.C);
  double class_sum = 0.0;
  for (int64_t b = 0; b < in.B; ++b) {
    const float* x = in.logits_BC + b * in.C;
    float* gradient = gradient_BC + b * in.C;
    const int64_t label = in.labels_B[b];
    if (label == in.ignore_index) {
      std::fill(gradient, gradient + in.C, 0.0f);
      continue;
    }
    if (label < 0 || label >= in.C) {
      throw std::invalid_argument("labels holds " + std::to_string(label) + ", outside the " +
                                  std::to_string(in.C) + " classes");
    }
    const double max = *std::max_element(x, x + in.C);
    double sum = 0.0, shifted = 0.0;
    for (int64_t c = 0; c < in.C; ++c) {
      sum += std::exp(x[c] - max);
      shifted += x[c] - max;
    }
    const double log_sum = std::log(sum);
    // The smoothed target is 1 - s on the label, plus s / C on every class.
    class_sum += (1.0 - in.label_smoothing) * (log_sum - (x[label] - max));
    if (in.label_smoothing > 0.0) {  // 0 * inf, which a logit of -inf leads to, would be NaN
      class_sum += in.label_smoothing * (log_sum - shifted / static_cast<double>(in.C));
    }
    for (int64_t c = 0; c < in.C; ++c) {
      const double wanted = off + (c == label ? 1.0 - in.label_smoothing : 0.0);
      gradient[c] = static_cast<float>((std::exp(x[c] - max) / sum - wanted) * row_scale);
    }
  }
  const double masked = in.denominators_2[0];
  const double mlm = masked > 0.0 ? mlm_sum / masked : mlm_sum * 0.0;
  const double classification = labels > 0.0 ? class_sum / labels : class_sum * 0.0;
  terms_4[0] = static_cast<float>(in.alpha * mlm + (1.0 - in.alpha) * classification);
  terms_4[1] = static_cast<float>(mlm);
  terms_4[2] = static_cast<float>(classification);
  terms_4[3] = static_cast<float>(masked > 0.0 ? 1.0 / masked : 0.0);
}

}  // namespace masktuning

// dual_cross_entropy on the CPU. Shapes: B examples, C classes, M masked positions.
#pragma once

#include <cstdint>

namespace masktuning {

struct DualInputs {
  const float* losses_M;
  const float* logits_BC;
  const int64_t* labels_B;
  const float* denominators_2;
  int64_t M, B, C;
  double alpha;
  double label_smoothing;
  int64_t ignore_index;
};

// Writes {loss, mlm, classification, d mlm / d losses} to terms_4, and d classification / d logits to
// gradient_BC. Sums are in double precision, in the order of the rows. Throws std::invalid_argument
// for a label that is neither a class nor ignore_index.
void dual_cross_entropy(const DualInputs& in, float* terms_4, float* gradient_BC);

}  // namespace masktuning

// Dropout on the CPU: the mask is drawn with Philox and applied in the same pass.
#pragma once

#include <cstdint>

#include "half.h"
#include "philox.h"

namespace masktuning {

struct DropoutInputs {
  const void* values;
  Dtype dtype;
  int64_t size;  // the number of elements
  u64 seed;      // of this call
  double p;      // the probability that an element is dropped
};

// Writes values[i] / (1 - p) for an element that is kept and values[i] * 0 for one that is dropped, so
// that a NaN stays NaN, as in PyTorch. `out` has the dtype of the values, and may be the same memory.
//
// Elements are drawn in blocks of 32, by eight Philox counters of four words each. With b = i / 32 and
// r = i % 32, element i is dropped if word r / 8 of
//
//   key     = (seed & 0xffffffff, seed >> 32)
//   counter = (c & 0xffffffff, c >> 32, 0, 4)  with  c = 8 * b + r % 8
//
// is below round(p * 2^32). The mask depends on neither the number of threads nor the processor.
// Throws std::invalid_argument if p is not in [0, 1], or the dtype is none.
void dropout(const DropoutInputs& in, int threads, void* out);

}  // namespace masktuning

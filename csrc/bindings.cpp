// The Python module masktuning_C. Tensors come as the integers of data_ptr() and sizes, without any type
// of torch, so that one build serves every torch. The checks of dtypes and devices are in masktuning/ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "cuda/launcher.h"
#include "dropout.h"
#include "dual_cross_entropy.h"
#include "mask_sampling.h"
#include "multiversion.h"
#include "philox.h"
#include "token_substitution.h"

namespace py = pybind11;
using namespace masktuning;

namespace {

// Raised by one with every change of a signature below. masktuning/ops/backends/extension.py holds the
// number that it was written for.
constexpr int kAbi = 5;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

MaskSamplingInputs mask_inputs(uintptr_t input_ids, uintptr_t example_ids, uintptr_t rng,
                               uintptr_t replacement_ids, int64_t num_replacements, int64_t B,
                               int64_t L, int64_t mask_token_id) {
  return {pointer<const int64_t>(input_ids), pointer<const int64_t>(example_ids),
          pointer<const int64_t>(rng),       pointer<const int64_t>(replacement_ids),
          B,                                 L,
          num_replacements,                  mask_token_id};
}

MaskedTokens mask_outputs(uintptr_t input_ids, uintptr_t positions, uintptr_t targets) {
  return {pointer<int64_t>(input_ids), pointer<int64_t>(positions), pointer<int64_t>(targets)};
}

void sample_masks(uintptr_t input_ids, uintptr_t maskable, uintptr_t example_ids,
                  uintptr_t offsets, uintptr_t rng, uintptr_t replacement_ids,
                  int64_t num_replacements, int64_t B, int64_t L, int64_t num_masked,
                  int64_t mask_token_id, uintptr_t out_input_ids, uintptr_t out_positions,
                  uintptr_t out_targets, int threads) {
  py::gil_scoped_release release;
  sample_masks_exact(mask_inputs(input_ids, example_ids, rng, replacement_ids, num_replacements, B,
                                 L, mask_token_id),
                     pointer<const bool>(maskable), pointer<const int64_t>(offsets), num_masked,
                     threads, mask_outputs(out_input_ids, out_positions, out_targets));
}

int64_t sample_masks_by_threshold(uintptr_t input_ids, uintptr_t thresholds, uintptr_t example_ids,
                                  uintptr_t rng, uintptr_t replacement_ids,
                                  int64_t num_replacements, int64_t B, int64_t L,
                                  int64_t mask_token_id, uintptr_t out_input_ids,
                                  uintptr_t out_positions, uintptr_t out_targets, int threads) {
  py::gil_scoped_release release;
  return sample_masks_threshold(
      mask_inputs(input_ids, example_ids, rng, replacement_ids, num_replacements, B, L,
                  mask_token_id),
      pointer<const int64_t>(thresholds), threads,
      mask_outputs(out_input_ids, out_positions, out_targets));
}

void substitute(uintptr_t logits, int dtype, int64_t M, int64_t V, int64_t row_stride,
                uintptr_t positions, uintptr_t targets, uintptr_t example_ids, uintptr_t rng,
                uintptr_t banned_ids, int64_t N, int64_t BL, int64_t L, int64_t tokenizer_size,
                int top_k, float draw_scale, float gradient_scale, uintptr_t losses,
                uintptr_t tokens, uintptr_t input_ids, uintptr_t lse, int threads) {
  py::gil_scoped_release release;
  substitute_tokens({pointer<void>(logits), static_cast<Dtype>(dtype), M, V, row_stride,
                     pointer<const int64_t>(positions), pointer<const int64_t>(targets),
                     pointer<const int64_t>(example_ids), pointer<const int64_t>(rng),
                     pointer<const int64_t>(banned_ids), N, BL, L, tokenizer_size, top_k,
                     draw_scale, gradient_scale},
                    threads,
                    {pointer<float>(losses), pointer<int64_t>(tokens),
                     pointer<int64_t>(input_ids), pointer<float>(lse)});
}

void dual(uintptr_t losses, uintptr_t logits, uintptr_t labels, uintptr_t denominators, int64_t M,
          int64_t B, int64_t C, double alpha, double label_smoothing, int64_t ignore_index,
          uintptr_t terms, uintptr_t gradient) {
  py::gil_scoped_release release;
  dual_cross_entropy({pointer<const float>(losses), pointer<const float>(logits),
                      pointer<const int64_t>(labels), pointer<const float>(denominators), M, B, C,
                      alpha, label_smoothing, ignore_index},
                     pointer<float>(terms), pointer<float>(gradient));
}

void drop(uintptr_t values, int dtype, int64_t size, uintptr_t seed, double p, uintptr_t out,
          int threads) {
  py::gil_scoped_release release;
  dropout({pointer<const void>(values), static_cast<Dtype>(dtype), size,
           static_cast<u64>(*pointer<const int64_t>(seed)), p},
          threads, pointer<void>(out));
}

py::tuple philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  const Words words = philox4x32_10(c0, c1, c2, c3, k0, k1);
  return py::make_tuple(words.w0, words.w1, words.w2, words.w3);
}

py::tuple compile_with_nvrtc(const std::string& library, const std::string& name,
                             const std::string& source,
                             const std::map<std::string, std::string>& headers,
                             const std::string& arch) {
  Compiled compiled;
  {
    py::gil_scoped_release release;
    compiled = nvrtc_compile(library, name, source, headers, arch);
  }
  return py::make_tuple(py::bytes(compiled.cubin), compiled.ptx, compiled.log);
}

py::dict build_info() {
  py::dict info;
#if defined(__VERSION__)
  info["compiler"] = __VERSION__;
#endif
  info["cpp"] = static_cast<int64_t>(__cplusplus);
  info["processors"] = MT_MULTIVERSION_NAMES;
  return info;
}

}  // namespace

PYBIND11_MODULE(masktuning_C, module) {
  module.doc() = "The CPU kernels and the CUDA launcher of masktuning. They take addresses and sizes; call them through masktuning.ops.";
  module.attr("ABI") = kAbi;
  module.def("build_info", &build_info);
  module.def("philox4x32_10", &philox);
  module.def("sample_masks", &sample_masks);
  module.def("sample_masks_threshold", &sample_masks_by_threshold);
  module.def("substitute_tokens", &substitute);
  module.def("dual_cross_entropy", &dual);
  module.def("dropout", &drop);
  module.def("nvrtc_compile", &compile_with_nvrtc);
  module.def("cuda_load", &cuda_load, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_function", &cuda_function, py::call_guard<py::gil_scoped_release>());
  module.def("cuda_launch", &cuda_launch, py::call_guard<py::gil_scoped_release>());
}

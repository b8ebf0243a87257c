// Conversions between float and the bits of fp16 and bf16, rounding to nearest even. They have no
// branches, so that compilers vectorise loops over them.
#pragma once

#include <cstdint>
#include <cstring>

#include "multiversion.h"

namespace masktuning {

MT_ALWAYS_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

MT_ALWAYS_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// The dtypes that the kernels read, numbered in the order of KERNEL_FLOATS in masktuning/ops/checks.py.
enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

MT_ALWAYS_INLINE float to_float(float value) { return value; }

MT_ALWAYS_INLINE float to_float(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

MT_ALWAYS_INLINE float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 corrects the bias of the exponent, and makes subnormal halves normal floats.
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;  // inf and NaN
  return bits_to_float(float_to_bits(scaled) | special | sign);
}

MT_ALWAYS_INLINE void from_float(float value, float& out) { out = value; }

MT_ALWAYS_INLINE void from_float(float value, BFloat16& out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
}

MT_ALWAYS_INLINE void from_float(float value, Float16& out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Adding this number makes the float's own rounding, to nearest even, happen at the half's last bit.
  const uint32_t exponent = magnitude & 0x7f800000u;
  const uint32_t smallest = 0x38800000u;  // 2^-14, the smallest normal half
  const uint32_t aligned = exponent < smallest ? smallest : exponent;
  const float magic = bits_to_float(aligned + (13u << 23));
  const float rounded = (bits_to_float(magnitude) + magic) - magic;
  const float shifted = rounded * 0x1p-112f;  // a subnormal half becomes a subnormal float, so its bits stay in place
  const uint32_t half = float_to_bits(shifted) >> 13;
  const bool nan = magnitude > 0x7f800000u;
  const bool overflow = magnitude >= 0x477ff000u;  // 65520 rounds to infinity
  out.bits = static_cast<uint16_t>(sign | (nan ? 0x7e00u : overflow ? 0x7c00u : half));
}

}  // namespace masktuning

// Several machine codes for one function: the loader picks the one for the processor of this machine.
// A wheel built anywhere runs anywhere, and still uses AVX-512 if the processor has it.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define MT_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define MT_MULTIVERSION_NAMES "x86-64, x86-64-v3 (AVX2), x86-64-v4 (AVX-512)"
// For two definitions of one function, the second of which uses AVX2 intrinsics.
#define MT_TARGET_DEFAULT __attribute__((target("default")))
#define MT_TARGET_AVX2 __attribute__((target("arch=x86-64-v3")))
#else
#define MT_MULTIVERSION
#define MT_MULTIVERSION_NAMES "default"
#define MT_TARGET_DEFAULT
#endif

// What a multiversioned function calls must be inlined, or it is compiled for the plain processor.
#if defined(__GNUC__)
#define MT_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define MT_ALWAYS_INLINE inline
#endif

// One function, several machine codes: the loader picks the one for the processor at hand, so a
// wheel built anywhere runs anywhere and still uses AVX-512 where it is.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define MT_MULTIVERSION __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#define MT_MULTIVERSION_NAMES "default, avx2, x86-64-v4 (AVX-512)"
#else
#define MT_MULTIVERSION
#define MT_MULTIVERSION_NAMES "default"
#endif

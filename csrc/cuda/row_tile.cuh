// A row of logits, or a slice of one, held in the registers of a block.
//
// Every aligned 16-byte vector that lies wholly within the row is read and written in one access. What
// remains at the two ends, less than 32 bytes in total, is read and written one element per thread.
//
// Shapes: V vocabulary.
#pragma once

#include "device.cuh"

namespace masktuning {

// How elements of type T are stored in a 16-byte vector.
template <typename T>
struct Packing;

template <>
struct Packing<float> {
  static constexpr u32 kMinusInfinity = 0xff800000u;
  static __device__ __forceinline__ float get(const u32* words, int e) {
    return __uint_as_float(words[e]);
  }
  static __device__ __forceinline__ u32 word(const float* x, int w) { return __float_as_uint(x[w]); }
  static __device__ __forceinline__ float load(const float* x) { return *x; }
  static __device__ __forceinline__ void store(float* x, float value) {
    store_word(x, __float_as_uint(value));
  }
};

template <>
struct Packing<Half> {
  static constexpr u32 kMinusInfinity = 0xfc00fc00u;
  static __device__ __forceinline__ float get(const u32* words, int e) {
    return half_to_float((e & 1) ? words[e / 2] >> 16 : words[e / 2] & 0xffffu);
  }
  static __device__ __forceinline__ u32 word(const float* x, int w) {
    return pack_half2(x[2 * w], x[2 * w + 1]);
  }
  static __device__ __forceinline__ float load(const Half* x) { return half_to_float(x->bits); }
  static __device__ __forceinline__ void store(Half* x, float value) {
    store_half_word(x, (u16)pack_half2(value, 0.0f));
  }
};

template <>
struct Packing<BFloat16> {
  static constexpr u32 kMinusInfinity = 0xff80ff80u;
  static __device__ __forceinline__ float get(const u32* words, int e) {
    return __uint_as_float((e & 1) ? words[e / 2] & 0xffff0000u : words[e / 2] << 16);
  }
  static __device__ __forceinline__ u32 word(const float* x, int w) {
    return pack_bfloat2(x[2 * w], x[2 * w + 1]);
  }
  static __device__ __forceinline__ float load(const BFloat16* x) {
    return __uint_as_float((u32)x->bits << 16);
  }
  static __device__ __forceinline__ void store(BFloat16* x, float value) {
    store_half_word(x, (u16)pack_bfloat2(value, 0.0f));
  }
};

// An integer with one bit for each vector of a thread.
template <bool MANY>
struct VectorBits {
  typedef u32 Type;
};
template <>
struct VectorBits<true> {
  typedef u64 Type;
};

// With BIAS the logits are row + bias. Each sum is rounded to T, as a matrix product with a bias does.
template <typename T, int THREADS, int VECTORS, bool BIAS>
struct RowTile {
  typedef T Element;
  typedef Packing<T> P;
  static constexpr int kThreads = THREADS, kVectors = VECTORS;
  static constexpr int kElements = 16 / sizeof(T);  // of a vector
  static constexpr int kBatch = 4;  // bias vectors loaded at once
  typedef typename VectorBits<(VECTORS > 32)>::Type Vectors;
  static_assert(2 * (kElements - 1) <= THREADS, "one thread per element at the row's ends");

  T* row;
  const T* bias;
  int length, head, vectors;  // elements before the first vector, and whole vectors
  u32 words[VECTORS][4];      // vector i of this thread is vector i * THREADS + thread of the row
  float edge;                 // this thread's element at the ends of the row, or -inf

  // Starts to read row[0, length). The bias must be aligned as the row is.
  __device__ __forceinline__ RowTile(T* row_, int length_, const T* bias_)
      : row(row_), bias(bias_), length(length_) {
    const int offset = (int)((u64)row & 15u) / (int)sizeof(T);
    head = offset == 0 ? 0 : kElements - offset;
    if (head > length) head = length;
    vectors = (length - head) / kElements;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
      const int v = i * THREADS + (int)threadIdx.x;
      load_words(words[i], row + head + v * kElements, v < vectors, P::kMinusInfinity);
    }
    const int index = edge_index();
    edge = index < 0 ? -MT_INFINITY : P::load(row + index);
  }

  // Adds the bias, if there is one, to what was read. This waits for the loads of the row, after those
  // of the first vectors of the bias have been started.
  __device__ __forceinline__ void add_bias() {
    if (!BIAS) return;
    const int index = edge_index();
    if (index >= 0) edge = rounded(edge + P::load(bias + index));
#pragma unroll
    for (int first = 0; first < VECTORS; first += kBatch) {
      // This is a branch, not a condition of each load. Otherwise the compiler starts all loads of the
      // bias at once, and spills those that it has no registers for.
      if (first * THREADS + (int)threadIdx.x >= vectors) break;
      u32 b[kBatch][4];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int v = (first + j) * THREADS + (int)threadIdx.x;
        if (first + j < VECTORS) load_words(b[j], bias + index_of(v), v < vectors, 0u);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (first + j < VECTORS) add(first + j, b[j]);
      }
    }
  }

  // The index of this thread's element at the ends of the row, or -1.
  __device__ __forceinline__ int edge_index() const {
    const int t = threadIdx.x, middle = vectors * kElements;
    return t < length - middle ? (t < head ? t : t + middle) : -1;
  }

  // The index at which vector v of the row begins, and the bit of vector i of this thread.
  __device__ __forceinline__ int index_of(int v) const { return head + v * kElements; }
  static __device__ __forceinline__ Vectors vector_bit(int i) { return (Vectors)1 << i; }

  __device__ __forceinline__ float at(int i, int e) const { return P::get(words[i], e); }

  // The thread that holds element `index` of the row.
  __device__ __forceinline__ int owner(int index) const {
    const int middle = vectors * kElements;
    if (index < head) return index;
    return index < head + middle ? (index - head) / kElements % THREADS : index - middle;
  }

  __device__ __forceinline__ bool contains(i64 index) const { return index >= 0 && index < length; }

  // Element `index` as its owner holds it. It is read from memory, so this must precede replace().
  __device__ __forceinline__ float element(i64 index) const {
    const float x = P::load(row + index);
    return BIAS ? rounded(x + P::load(bias + index)) : x;
  }

  // Called in each sweep of the row: its words stay in registers, but its floats would not fit.
  __device__ __forceinline__ void forget_floats(int i) {
#pragma unroll
    for (int w = 0; w < 4; ++w) forget(words[i][w]);
  }

  // Overwrites each element by f(element).
  template <typename F>
  __device__ __forceinline__ void replace(F f) {
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
      const int v = i * THREADS + (int)threadIdx.x;
      if (v >= vectors) break;
      forget_floats(i);
      float x[kElements];
#pragma unroll
      for (int e = 0; e < kElements; ++e) x[e] = f(at(i, e));
      store_words(row + index_of(v), P::word(x, 0), P::word(x, 1), P::word(x, 2), P::word(x, 3));
    }
    const int index = edge_index();
    if (index >= 0) P::store(row + index, f(edge));
  }

 private:
  __device__ __forceinline__ void add(int i, const u32* b) {
    float x[kElements];
#pragma unroll
    for (int e = 0; e < kElements; ++e) x[e] = at(i, e) + P::get(b, e);
#pragma unroll
    for (int w = 0; w < 4; ++w) words[i][w] = P::word(x, w);
    forget_floats(i);
  }

  static __device__ __forceinline__ float rounded(float value) {
    const float x[2] = {value, 0.0f};
    const u32 word = P::word(x, 0);
    return P::get(&word, 0);
  }
};

}  // namespace masktuning

// The k largest values of a row, and the draw among them in integer arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "philox.h"

namespace masktuning {

struct Candidate {
  float value;
  int64_t index;
};

// The ids that may not be substituted: those of a sorted list, and all ids from `limit` on.
struct BannedIds {
  std::vector<int64_t> ids;
  int64_t limit;

  BannedIds(const int64_t* ids_N, int64_t N, int64_t limit_) : ids(ids_N, ids_N + N), limit(limit_) {
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    // Ids that reach up to the limit lower it: the ids of padding rows may come as a list.
    while (!ids.empty() && ids.back() >= limit - 1) {
      limit = std::min(limit, ids.back());
      ids.pop_back();
    }
  }

  bool has(int64_t id) const {
    return id >= limit || std::binary_search(ids.begin(), ids.end(), id);
  }
};

// The k largest allowed values of a row, value descending, index ascending.
class Largest {
 public:
  Largest(const BannedIds& banned, int k) : banned_(banned), k_(static_cast<size_t>(k)) {}

  // Considers n values, those of the ids from `index` on, if they are at least tau. Calls must come
  // in ascending order of `index`. Of equal values the earlier one then stays in front, and a row
  // of ties costs one comparison per value.
  void take(const float* values, int64_t n, int64_t index, float tau) {
    for (int64_t j = 0; j < n; ++j) {
      const float value = values[j];
      if (!(value >= tau) || (found.size() == k_ && !(value > found.back().value))) continue;
      if (banned_.has(index + j)) continue;
      if (found.size() == k_) found.pop_back();
      auto place = found.end();
      while (place != found.begin() && (place - 1)->value < value) --place;
      found.insert(place, {value, index + j});
    }
  }

  std::vector<Candidate> found;

 private:
  const BannedIds& banned_;
  size_t k_;
};

// The integer weight of a candidate, floor(2^24 * 2^y), by the polynomial of ops/topk_sampling.py.
// Each product and each sum is rounded, as there.
inline u64 draw_weight(float value, float best, float scale) {
  float y = (value - best) * scale;
  if (!(y > -25.0f)) y = -25.0f;  // also a NaN, which -inf - (-inf) gives
  const float whole = std::floor(y);
  const float f = y - whole;
  float power = 0.00186699f;
  power = power * f + 0.00901733f;
  power = power * f + 0.05579971f;
  power = power * f + 0.2401645f;
  power = power * f + 0.6931513f;
  power = power * f + 1.0f;
  return static_cast<u64>(std::ldexp(power, static_cast<int>(whole) + 24));
}

// The id of one of the candidates, chosen by their weights and the random number `draw`.
inline int64_t draw_among(const std::vector<Candidate>& top, float scale, u32 draw) {
  u64 total = 0;
  for (const auto& c : top) total += draw_weight(c.value, top[0].value, scale);
  const u64 point = (static_cast<u64>(draw) * total) >> 32;
  u64 cumulative = 0;
  for (const auto& c : top) {
    cumulative += draw_weight(c.value, top[0].value, scale);
    if (cumulative > point) return c.index;
  }
  return top.back().index;
}

}  // namespace masktuning

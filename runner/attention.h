// Grouped-query attention over the filled part of a KV cache, one KV head at a time.
//
// The rounding is that of lfm2_export/model/attention.py: what goes into each product is of the cache's type, sums and
// the softmax's denominator are fp32. Keys of one head lie one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lfm2 {

enum class CacheType { kFloat, kHalf, kBfloat16 };

size_t bytes_of(CacheType type);

// One KV head's part of a call.
struct HeadCall {
  const void* query;   // [tokens, groups, width]
  const void* keys;    // [window, width], filled up to start + tokens
  const void* values;  // [window, width]
  void* mixed;         // [tokens, groups, width], written
  CacheType type;      // of all four
  int64_t tokens, groups, width;
  int64_t start;  // tokens before this call
  float scale;
};

// Rows `first` to `last` (exclusive) of the tokens × groups rows of a call. `scratch` holds at least
// `scratch_floats(call, first, last)` floats.
void attend(const HeadCall& call, int64_t first, int64_t last, float* scratch);
size_t scratch_floats(const HeadCall& call, int64_t first, int64_t last);

}  // namespace lfm2

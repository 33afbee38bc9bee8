#include "attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include <executorch/runtime/core/exec_aten/exec_aten.h>

// On x86-64 the wide loops are compiled for three processors and the right one is chosen when the program starts. Not
// under a sanitizer, which is not ready yet at that moment.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define LFM2_WIDE __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define LFM2_WIDE
#endif
#define LFM2_INLINE inline __attribute__((always_inline))

namespace lfm2 {
namespace {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Whole __attribute__((vector_size(kLanes * sizeof(int32_t))));

LFM2_INLINE void load(Lanes& to, const float* from) { std::memcpy(&to, from, sizeof to); }
LFM2_INLINE void store(float* to, const Lanes& from) { std::memcpy(to, &from, sizeof from); }

LFM2_INLINE float dot(const float* a, const float* b, int64_t width) {
  Lanes sum = {}, x, y;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    load(x, a + i);
    load(y, b + i);
    sum += x * y;
  }
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  for (; i < width; ++i) total += a[i] * b[i];
  return total;
}

// y += weight * x
LFM2_INLINE void accumulate(float* y, const float* x, float weight, int64_t width) {
  Lanes mine, theirs;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    load(mine, y + i);
    load(theirs, x + i);
    mine += weight * theirs;
    store(y + i, mine);
  }
  for (; i < width; ++i) y[i] += weight * x[i];
}

// x becomes e^x, for x <= 0: 2^n times the Taylor series of e^r, |r| <= ln(2)/2, whose first term left out is below 1e-8.
LFM2_INLINE void exponential(Lanes& x) {
  x = x < -87.0f ? Lanes{} - 87.0f : x;  // below, fp32 has no normal numbers; the weight is as good as zero
  const Lanes n = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f - 0.5f, Whole), Lanes);
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts, the first one exact
  Lanes sum = Lanes{} + 1.0f / 5040;
  for (const float inverse : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) sum = sum * r + inverse;
  const Whole exponent = (__builtin_convertvector(n, Whole) + 127) << 23;
  Lanes power;
  std::memcpy(&power, &exponent, sizeof power);
  x = sum * power;
}

template <typename T>
LFM2_INLINE void widen(const T* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

// A bfloat16 is the upper half of an fp32.
LFM2_INLINE void widen(const executorch::aten::BFloat16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, from + i, sizeof half);
    const uint32_t whole = static_cast<uint32_t>(half) << 16;
    std::memcpy(to + i, &whole, sizeof whole);
  }
}

LFM2_INLINE float rounded(float x, executorch::aten::BFloat16*) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;  // to nearest, ties to even; x is never a NaN here
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}
LFM2_INLINE float rounded(float x, executorch::aten::Half*) { return static_cast<float>(executorch::aten::Half(x)); }
LFM2_INLINE float rounded(float x, float*) { return x; }

// Scores of one row become weights, rounded to T; returns the sum of the unrounded ones. A row has room up to
// the next multiple of kLanes.
template <typename T>
LFM2_INLINE float soften(float* row, int64_t columns) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, row[i]);
  Lanes total = {}, x;
  for (int64_t i = 0; i < columns; i += kLanes) {
    load(x, row + i);
    x -= largest;
    exponential(x);
    for (int lane = 0; lane < kLanes && i + kLanes > columns; ++lane) x[lane] = i + lane < columns ? x[lane] : 0;
    total += x;
    store(row + i, x);
  }
  for (int64_t i = 0; i < columns; ++i) row[i] = rounded(row[i], static_cast<T*>(nullptr));
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
  return sum;
}

constexpr int64_t kBlock = 64;  // keys or values that are widened at a time, to stay in the first-level cache

int64_t stride_of(const HeadCall& call) { return (call.start + call.tokens + kLanes - 1) / kLanes * kLanes; }

template <typename T>
LFM2_INLINE void attend_typed(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  const int64_t width = call.width, rows = last - first, stride = stride_of(call);
  const int64_t most = call.start + (last - 1) / call.groups + 1;  // columns that the last row sees
  float *block = scratch, *queries = block + kBlock * width, *mixed = queries + rows * width;
  float* scores = mixed + rows * width;
  widen(static_cast<const T*>(call.query) + first * width, queries, rows * width);
  std::fill(mixed, mixed + rows * width, 0.0f);
  const auto sees = [&](int64_t row) { return call.start + (first + row) / call.groups + 1; };
  for (int64_t from = 0; from < most; from += kBlock) {
    const int64_t to = std::min(from + kBlock, most);
    widen(static_cast<const T*>(call.keys) + from * width, block, (to - from) * width);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = std::min(to, sees(row));
      for (int64_t column = from; column < end; ++column) {
        scores[row * stride + column] = call.scale * dot(queries + row * width, block + (column - from) * width, width);
      }
    }
  }
  float* totals = queries;  // not needed any more
  for (int64_t row = 0; row < rows; ++row) totals[row] = soften<T>(scores + row * stride, sees(row));
  for (int64_t from = 0; from < most; from += kBlock) {
    const int64_t to = std::min(from + kBlock, most);
    widen(static_cast<const T*>(call.values) + from * width, block, (to - from) * width);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = std::min(to, sees(row));
      for (int64_t column = from; column < end; ++column) {
        accumulate(mixed + row * width, block + (column - from) * width, scores[row * stride + column], width);
      }
    }
  }
  T* out = static_cast<T*>(call.mixed) + first * width;
  for (int64_t row = 0; row < rows; ++row) {
    const float inverse = 1.0f / totals[row];
    for (int64_t i = 0; i < width; ++i) out[row * width + i] = static_cast<T>(mixed[row * width + i] * inverse);
  }
}

LFM2_WIDE void attend_float(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  attend_typed<float>(call, first, last, scratch);
}
LFM2_WIDE void attend_half(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  attend_typed<executorch::aten::Half>(call, first, last, scratch);
}
LFM2_WIDE void attend_bfloat16(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  attend_typed<executorch::aten::BFloat16>(call, first, last, scratch);
}

}  // namespace

size_t bytes_of(CacheType type) { return type == CacheType::kFloat ? 4 : 2; }

size_t scratch_floats(const HeadCall& call, int64_t first, int64_t last) {
  return static_cast<size_t>(kBlock * call.width + (last - first) * (2 * call.width + stride_of(call)));
}

void attend(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  switch (call.type) {
    case CacheType::kFloat: return attend_float(call, first, last, scratch);
    case CacheType::kHalf: return attend_half(call, first, last, scratch);
    case CacheType::kBfloat16: return attend_bfloat16(call, first, last, scratch);
  }
}

}  // namespace lfm2

#include "attention.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <executorch/runtime/core/exec_aten/exec_aten.h>

#define LFM2_INLINE inline __attribute__((always_inline))

namespace lfm2 {
namespace {

// N numbers that the processor computes at once. Always by reference: how they are passed depends on the processor.
template <int N>
struct Vector {
  typedef float Lanes __attribute__((vector_size(N * sizeof(float))));
  typedef int32_t Whole __attribute__((vector_size(N * sizeof(int32_t))));
};
template <int N>
using Lanes = typename Vector<N>::Lanes;
template <int N>
using Whole = typename Vector<N>::Whole;

template <typename V>
LFM2_INLINE void load(V& to, const float* from) { std::memcpy(&to, from, sizeof to); }
template <typename V>
LFM2_INLINE void store(float* to, const V& from) { std::memcpy(to, &from, sizeof from); }

// a becomes, in each lane whose number has the bit `Half`, the sum of b's lanes that differ in that bit alone, in the others
// that of a's own.
template <int N, int Half, int... I>
LFM2_INLINE void fold(Lanes<N>& a, const Lanes<N>& b, std::integer_sequence<int, I...>) {
  const Whole<N> here = {(I & Half ? N + I : I)...}, there = {(I & Half ? N + I - Half : I + Half)...};
  a = __builtin_shuffle(a, b, here) + __builtin_shuffle(a, b, there);
}

// sums[0] becomes, in lane i, the sum of all lanes of sums[i].
template <int N, int Half = N / 2>
LFM2_INLINE void sum_lanes(Lanes<N>* sums) {
  for (int i = 0; i < Half; ++i) fold<N, Half>(sums[i], sums[i + Half], std::make_integer_sequence<int, N>());
  if constexpr (Half > 1) sum_lanes<N, Half / 2>(sums);
}

// x becomes e^x, for x <= 0: 2^n times the Taylor series of e^r, |r| <= ln(2)/2, whose first term left out is below 1e-8.
template <int N>
LFM2_INLINE void exponential(Lanes<N>& x) {
  x = x < -87.0f ? Lanes<N>{} - 87.0f : x;  // below, fp32 has no normal numbers; the weight is as good as zero
  const Lanes<N> n = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f - 0.5f, Whole<N>), Lanes<N>);
  const Lanes<N> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts, the first one exact
  Lanes<N> sum = Lanes<N>{} + 1.0f / 5040;
  for (const float inverse : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) sum = sum * r + inverse;
  const Whole<N> exponent = (__builtin_convertvector(n, Whole<N>) + 127) << 23;
  Lanes<N> power;
  std::memcpy(&power, &exponent, sizeof power);
  x = sum * power;
}

template <typename T>
LFM2_INLINE const float* widened(const T* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
  return to;
}

LFM2_INLINE const float* widened(const float* from, float*, int64_t) { return from; }

// A bfloat16 is the upper half of an fp32.
LFM2_INLINE const float* widened(const executorch::aten::BFloat16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, from + i, sizeof half);
    const uint32_t whole = static_cast<uint32_t>(half) << 16;
    std::memcpy(to + i, &whole, sizeof whole);
  }
  return to;
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

// The first `seen` scores of a row become weights, rounded to T, those behind them zeros; returns the sum of the unrounded ones.
// A row has room for `columns`, a multiple of N.
template <typename T, int N>
LFM2_INLINE float soften(float* row, int64_t seen, int64_t columns) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Lanes<N> peaks = Lanes<N>{} + kLowest, total = {}, x;
  int64_t whole = 0;
  for (; whole + N <= seen; whole += N) {
    load(x, row + whole);
    peaks = peaks < x ? x : peaks;
  }
  float largest = kLowest;
  for (int lane = 0; lane < N; ++lane) largest = std::max(largest, peaks[lane]);
  for (; whole < seen; ++whole) largest = std::max(largest, row[whole]);
  for (int64_t i = 0; i < seen; i += N) {
    load(x, row + i);
    x -= largest;
    exponential<N>(x);
    for (int lane = 0; lane < N && i + N > seen; ++lane) x[lane] = i + lane < seen ? x[lane] : 0;
    total += x;
    store(row + i, x);
  }
  std::fill(row + seen, row + columns, 0.0f);
  if constexpr (!std::is_same_v<T, float>) {
    for (int64_t i = 0; i < seen; ++i) row[i] = rounded(row[i], static_cast<T*>(nullptr));
  }
  float sum = 0;
  for (int lane = 0; lane < N; ++lane) sum += total[lane];
  return sum;
}

constexpr int kMostLanes = 16;
// Keys or values at a time, which stay in the first-level cache for all rows, and how far ahead they are asked for: left to
// itself, a processor stops at each 4 KB page, of 16 keys (a third of the time at 8000 tokens).
constexpr int64_t kBlock = 64;
template <int N>
constexpr int kRowsAtOnce = N == 8 ? 2 : 4;  // with twice as many registers as AVX2 has
constexpr int kWays = 4;  // keys, or vectors of a value, at a time: enough sums that none waits for the one before

// Whether a vector of N at that place of a row is the first of a cache line, which is asked for once.
constexpr int64_t kLine = 64 / sizeof(float);
template <int N>
LFM2_INLINE bool starts_line(int64_t place) { return N >= kLine || place % kLine == 0; }

int64_t stride_of(const HeadCall& call) { return (call.start + call.tokens + kMostLanes - 1) / kMostLanes * kMostLanes; }

// Products of R queries with up to N keys: N scores in each of R rows.
template <int R, int N>
LFM2_INLINE void score(const float* queries, const float* keys, int64_t count, int64_t width, float scale, float* scores, int64_t stride) {
  Lanes<N> sums[R][N] = {}, q[R], k;
  float rest[R][N] = {};
  for (int64_t first = 0; first < count; first += kWays) {
    Lanes<N> mine[R][kWays] = {};
    const float* key[kWays];
    for (int way = 0; way < kWays; ++way) key[way] = keys + std::min<int64_t>(first + way, count - 1) * width;
    int64_t i = 0;
    for (; i + N <= width; i += N) {
      for (int way = 0; way < kWays && starts_line<N>(i); ++way) __builtin_prefetch(keys + (first + way + kBlock) * width + i);
      for (int row = 0; row < R; ++row) load(q[row], queries + row * width + i);
      for (int way = 0; way < kWays; ++way) {
        load(k, key[way] + i);
        for (int row = 0; row < R; ++row) mine[row][way] += q[row] * k;
      }
    }
    for (int row = 0; row < R; ++row) {
      for (int way = 0; way < kWays; ++way) {
        sums[row][first + way] = mine[row][way];
        for (int64_t j = i; j < width; ++j) rest[row][first + way] += queries[row * width + j] * key[way][j];
      }
    }
  }
  for (int row = 0; row < R; ++row) {
    sum_lanes<N>(sums[row]);
    load(k, rest[row]);
    store(scores + row * stride, (sums[row][0] + k) * scale);
  }
}

// Adds to V vectors of each of R rows the weighted vectors of `count` values.
template <int R, int V, int N>
LFM2_INLINE void mix(const float* weights, int64_t stride, const float* values, int64_t count, int64_t width, float* mixed) {
  Lanes<N> sums[R][V], value;
  for (int row = 0; row < R; ++row) {
    for (int each = 0; each < V; ++each) load(sums[row][each], mixed + row * width + each * N);
  }
  for (int64_t column = 0; column < count; ++column) {
    for (int each = 0; each < V; ++each) {
      load(value, values + column * width + each * N);
      if (starts_line<N>(each * N)) __builtin_prefetch(values + (column + kBlock) * width + each * N);
      for (int row = 0; row < R; ++row) sums[row][each] += weights[row * stride + column] * value;
    }
  }
  for (int row = 0; row < R; ++row) {
    for (int each = 0; each < V; ++each) store(mixed + row * width + each * N, sums[row][each]);
  }
}

// Scores of all rows with a block of keys: R rows at a time, then half as many.
template <int N, int R = kRowsAtOnce<N>>
LFM2_INLINE void score_block(const float* queries, int64_t rows, const float* keys, int64_t count, int64_t width, float scale, float* scores,
                             int64_t stride) {
  int64_t row = 0;
  for (; row + R <= rows; row += R) {
    for (int64_t from = 0; from < count; from += N) {
      const int64_t here = std::min<int64_t>(N, count - from);
      score<R, N>(queries + row * width, keys + from * width, here, width, scale, scores + row * stride + from, stride);
    }
  }
  if constexpr (R > 1) score_block<N, R / 2>(queries + row * width, rows - row, keys, count, width, scale, scores + row * stride, stride);
}

// Adds to all rows a block of weighted values, likewise.
template <int N, int R = kRowsAtOnce<N>>
LFM2_INLINE void mix_block(const float* weights, int64_t stride, int64_t rows, const float* values, int64_t count, int64_t width, float* mixed) {
  int64_t row = 0;
  for (; row + R <= rows; row += R) {
    const float* weight = weights + row * stride;
    float* to = mixed + row * width;
    int64_t i = 0;
    for (; i + kWays * N <= width; i += kWays * N) mix<R, kWays, N>(weight, stride, values + i, count, width, to + i);
    for (; i + N <= width; i += N) mix<R, 1, N>(weight, stride, values + i, count, width, to + i);
    for (; i < width; ++i) {
      for (int64_t each = 0; each < R * count; ++each) {
        to[each / count * width + i] += weight[each / count * stride + each % count] * values[each % count * width + i];
      }
    }
  }
  if constexpr (R > 1) mix_block<N, R / 2>(weights + row * stride, stride, rows - row, values, count, width, mixed + row * width);
}

template <typename T, int N>
LFM2_INLINE void attend_typed(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  const int64_t width = call.width, rows = last - first, stride = stride_of(call);
  const int64_t most = call.start + (last - 1) / call.groups + 1;  // columns that the last row sees
  float *block = scratch, *wide = block + kBlock * width, *mixed = wide + rows * width, *scores = mixed + rows * width;
  const float* queries = widened(static_cast<const T*>(call.query) + first * width, wide, rows * width);
  for (int64_t from = 0; from < most; from += kBlock) {
    const int64_t count = std::min(kBlock, most - from);
    const float* keys = widened(static_cast<const T*>(call.keys) + from * width, block, count * width);
    score_block<N>(queries, rows, keys, count, width, call.scale, scores + from, stride);
  }
  float* totals = wide;  // not needed any more
  for (int64_t row = 0; row < rows; ++row) totals[row] = soften<T, N>(scores + row * stride, call.start + (first + row) / call.groups + 1, stride);
  std::fill(mixed, mixed + rows * width, 0.0f);
  for (int64_t from = 0; from < most; from += kBlock) {
    const int64_t count = std::min(kBlock, most - from);
    const float* values = widened(static_cast<const T*>(call.values) + from * width, block, count * width);
    mix_block<N>(scores + from, stride, rows, values, count, width, mixed);
  }
  T* out = static_cast<T*>(call.mixed) + first * width;
  for (int64_t row = 0; row < rows; ++row) {
    const float inverse = 1.0f / totals[row];
    for (int64_t i = 0; i < width; ++i) out[row * width + i] = static_cast<T>(mixed[row * width + i] * inverse);
  }
}

template <int N>
LFM2_INLINE void attend_in(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  switch (call.type) {
    case CacheType::kFloat: return attend_typed<float, N>(call, first, last, scratch);
    case CacheType::kHalf: return attend_typed<executorch::aten::Half, N>(call, first, last, scratch);
    case CacheType::kBfloat16: return attend_typed<executorch::aten::BFloat16, N>(call, first, last, scratch);
  }
}

using Attend = void (*)(const HeadCall&, int64_t, int64_t, float*);

void attend_narrow(const HeadCall& call, int64_t first, int64_t last, float* scratch) { attend_in<4>(call, first, last, scratch); }

#ifdef __x86_64__  // compiled for three processors, of which the program finds its own
__attribute__((target("avx2,fma,f16c"))) void attend_avx2(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  attend_in<8>(call, first, last, scratch);
}
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))) void attend_avx512(const HeadCall& call, int64_t first, int64_t last,
                                                                                            float* scratch) {
  attend_in<kMostLanes>(call, first, last, scratch);
}

Attend widest() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx2 && avx512 ? attend_avx512 : avx2 ? attend_avx2 : attend_narrow;
}
#else
Attend widest() { return attend_narrow; }
#endif

}  // namespace

size_t bytes_of(CacheType type) { return type == CacheType::kFloat ? 4 : 2; }

size_t scratch_floats(const HeadCall& call, int64_t first, int64_t last) {
  return static_cast<size_t>(kBlock * call.width + (last - first) * (2 * call.width + stride_of(call)));
}

void attend(const HeadCall& call, int64_t first, int64_t last, float* scratch) {
  static const Attend chosen = widest();
  chosen(call, first, last, scratch);
}

}  // namespace lfm2

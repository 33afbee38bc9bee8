// llama::update_cache.out(value, cache, start_pos, *, out): value [heads, T, 1, D] goes into cache [heads, S, 1, D]
// at start_pos; nobody reads `out`.
//
// llama::custom_sdpa.out(query, key, value, start_pos, attn_mask, dropout, is_causal, scale, *, out): query and out
// [heads, T, groups, D], key and value the caches; causal or each row sees start_pos + T columns; no mask, no dropout.
#include "operators.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <executorch/runtime/core/exec_aten/util/dim_order_util.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "attention.h"
#include "failure.h"

namespace lfm2 {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Kernel;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::Span;

constexpr int64_t kRows = 32;  // query rows of one task: they share what is read of the cache

bool dense(const Tensor& tensor) {
  return tensor.dim() == 4 && executorch::runtime::is_contiguous_dim_order(tensor.dim_order().data(), 4);
}

bool same_cache(const Tensor& a, const Tensor& cache) {
  return dense(a) && dense(cache) && a.scalar_type() == cache.scalar_type() && a.size(0) == cache.size(0) &&
         a.size(3) == cache.size(3) && cache.size(2) == 1 && a.const_data_ptr() != nullptr &&
         cache.const_data_ptr() != nullptr;
}

bool in_window(int64_t start, int64_t tokens, const Tensor& cache) {
  return start >= 0 && tokens >= 1 && start <= cache.size(1) - tokens;
}

// Whether `type` is one that attention computes in.
bool cache_type(ScalarType scalar, CacheType& type) {
  if (scalar == ScalarType::Float) type = CacheType::kFloat;
  else if (scalar == ScalarType::Half) type = CacheType::kHalf;
  else if (scalar == ScalarType::BFloat16) type = CacheType::kBfloat16;
  else return false;
  return true;
}

void update_cache(KernelRuntimeContext& context, Span<EValue*> stack) {
  if (stack.size() < 4 || !stack[0]->isTensor() || !stack[1]->isTensor() || !stack[2]->isInt()) {
    return context.fail(Error::InvalidArgument);
  }
  const Tensor& value = stack[0]->toTensor();
  Tensor& cache = stack[1]->toTensor();
  const int64_t start = stack[2]->toInt();
  if (!same_cache(value, cache) || value.size(2) != 1 || !in_window(start, value.size(1), cache)) {
    return context.fail(Error::InvalidArgument);
  }
  const size_t column = static_cast<size_t>(cache.size(3)) * cache.element_size();
  const size_t given = static_cast<size_t>(value.size(1)) * column, whole = static_cast<size_t>(cache.size(1)) * column;
  const char* from = static_cast<const char*>(value.const_data_ptr());
  char* to = static_cast<char*>(cache.mutable_data_ptr()) + static_cast<size_t>(start) * column;
  for (int64_t head = 0; head < cache.size(0); ++head) std::memcpy(to + head * whole, from + head * given, given);
}

void custom_sdpa(KernelRuntimeContext& context, Span<EValue*> stack) {
  const bool expected = stack.size() >= 9 && stack[0]->isTensor() && stack[1]->isTensor() && stack[2]->isTensor() &&
                        stack[3]->isInt() && stack[4]->isNone() && stack[6]->isBool() &&
                        (stack[7]->isNone() || stack[7]->isDouble()) && stack[8]->isTensor();
  if (!expected) return context.fail(Error::NotSupported);
  const Tensor &query = stack[0]->toTensor(), &keys = stack[1]->toTensor(), &values = stack[2]->toTensor();
  Tensor& out = stack[8]->toTensor();
  CacheType type{};
  if (!same_cache(query, keys) || !same_cache(query, values)) return context.fail(Error::InvalidArgument);
  int64_t start = stack[3]->toInt(), tokens = query.size(1);
  if (!stack[6]->toBool() && tokens >= 1 && start <= keys.size(1)) {  // every row sees what the last one does: one token
    start += tokens - 1;
    tokens = 1;
  }
  if (values.size(1) != keys.size(1) || !in_window(start, tokens, keys) || query.size(3) < 1 ||
      !cache_type(query.scalar_type(), type) ||
      !dense(out) || out.const_data_ptr() == nullptr || out.scalar_type() != query.scalar_type() ||
      executorch::runtime::resize_tensor(out, query.sizes()) != Error::Ok) {
    return context.fail(Error::InvalidArgument);
  }
  const int64_t heads = query.size(0), width = query.size(3), groups = query.size(1) * query.size(2) / tokens;
  const size_t bytes = bytes_of(type);
  const size_t asked = static_cast<size_t>(tokens * groups * width) * bytes;
  const size_t cached = static_cast<size_t>(keys.size(1) * width) * bytes;
  const float scale = stack[7]->isDouble() ? static_cast<float>(stack[7]->toDouble())
                                           : 1.0f / std::sqrt(static_cast<float>(width));
  const int64_t rows = tokens * groups, pieces = (rows + kRows - 1) / kRows;
  const bool ran = executorch::extension::parallel_for(0, heads * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / pieces, first = task % pieces * kRows, last = std::min(first + kRows, rows);
      const HeadCall call{static_cast<const char*>(query.const_data_ptr()) + head * asked,
                          static_cast<const char*>(keys.const_data_ptr()) + head * cached,
                          static_cast<const char*>(values.const_data_ptr()) + head * cached,
                          static_cast<char*>(out.mutable_data_ptr()) + head * asked,
                          type, tokens, groups, width, start, scale};
      scratch.resize(scratch_floats(call, first, last));
      attend(call, first, last, scratch.data());
    }
  });
  if (!ran) context.fail(Error::Internal);
}

}  // namespace

void register_operators() {
  const Kernel kernels[] = {Kernel("llama::update_cache.out", update_cache), Kernel("llama::custom_sdpa.out", custom_sdpa)};
  if (executorch::runtime::register_kernels({kernels, 2}) != Error::Ok) throw Failure("cannot register operators");
}

}  // namespace lfm2

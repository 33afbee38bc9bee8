// attend TYPE CONTEXT CALLS: so many calls of lfm2_runner's attention for one token and one KV head of LFM2's 350M shape. What
// one call executes is the difference of two such runs.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attention.h"

int main(int count, char** words) {
  if (count != 4) return 2;
  constexpr int64_t kGroups = 2, kWidth = 64;
  const std::string name = words[1];
  const int64_t context = std::atoll(words[2]), calls = std::atoll(words[3]);
  const auto type = name == "float32" ? lfm2::CacheType::kFloat : name == "float16" ? lfm2::CacheType::kHalf : lfm2::CacheType::kBfloat16;
  const uint32_t half = name == "float32" ? 0x3f000000u : name == "float16" ? 0x3800u : 0x3f00u;  // 0.5, an ordinary number
  const size_t bytes = lfm2::bytes_of(type);
  std::vector<char> query(kGroups * kWidth * bytes), keys(context * kWidth * bytes), values(keys.size()), mixed(query.size());
  for (auto* each : {&query, &keys, &values}) {
    for (size_t i = 0; i < each->size(); i += bytes) std::memcpy(each->data() + i, &half, bytes);
  }
  const lfm2::HeadCall call{query.data(), keys.data(), values.data(), mixed.data(), type, 1, kGroups, kWidth, context - 1, 0.125f};
  std::vector<float> scratch(lfm2::scratch_floats(call, 0, kGroups));
  for (int64_t i = 0; i < calls; ++i) lfm2::attend(call, 0, kGroups, scratch.data());
  return mixed == query ? 0 : 1;  // a mean of equal values is that value
}

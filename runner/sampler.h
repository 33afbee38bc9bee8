// From logits to a token.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace lfm2 {

// What LFM2's model cards recommend; a temperature of 0 is greedy.
struct Sampling {
  double temperature = 0.3;
  double min_p = 0.15;
  double repetition_penalty = 1.05;
  uint32_t seed = 0;
};

// Repetition penalty (arXiv:1909.05858), temperature, then min-p (arXiv:2407.01082), as lfm2_export/chat/sampling.py.
// The same seed gives the same tokens on every machine: MT19937 and its 53-bit real, no library's distribution.
class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling), random_(sampling.seed) {}

  // One of `vocab` tokens; `seen` are those of the conversation. Failure if a logit is not a number.
  int64_t operator()(const float* logits, int64_t vocab, const std::vector<int64_t>& seen);

 private:
  double uniform();  // [0, 1)

  Sampling sampling_;
  std::mt19937 random_;
};

// The most likely token, lowest id first among equals. Failure if a logit is not a number.
int64_t greedy(const float* logits, int64_t vocab);

}  // namespace lfm2

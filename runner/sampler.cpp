#include "sampler.h"

#include <algorithm>
#include <cmath>

#include "failure.h"

namespace lfm2 {

int64_t greedy(const float* logits, int64_t vocab) {
  int64_t best = 0;
  for (int64_t token = 0; token < vocab; ++token) {
    if (!std::isfinite(logits[token])) throw Failure("the model's logits are not numbers");
    if (logits[token] > logits[best]) best = token;
  }
  return best;
}

double Sampler::uniform() {
  const uint32_t high = random_() >> 5, low = random_() >> 6;
  return (high * 67108864.0 + low) / 9007199254740992.0;  // 27 and 26 bits of 2^53
}

int64_t Sampler::operator()(const float* logits, int64_t vocab, const std::vector<int64_t>& seen) {
  const int64_t likely = greedy(logits, vocab);
  if (sampling_.temperature == 0) return likely;
  std::vector<double> weights(logits, logits + vocab);
  std::vector<int64_t> repeated = seen;
  std::sort(repeated.begin(), repeated.end());
  repeated.erase(std::unique(repeated.begin(), repeated.end()), repeated.end());
  for (const int64_t token : repeated) {
    double& score = weights[static_cast<size_t>(token)];
    score = score > 0 ? score / sampling_.repetition_penalty : score * sampling_.repetition_penalty;
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  double total = 0;
  for (double& weight : weights) {
    weight = std::exp((weight - largest) / sampling_.temperature);
    if (weight < sampling_.min_p) weight = 0;  // relative to the likeliest, whose weight is 1
    total += weight;
  }
  double left = uniform() * total;
  int64_t last = likely;
  for (int64_t token = 0; token < vocab; ++token) {
    const double weight = weights[static_cast<size_t>(token)];
    if (weight == 0) continue;
    last = token;
    if ((left -= weight) < 0) break;
  }
  return last;
}

}  // namespace lfm2

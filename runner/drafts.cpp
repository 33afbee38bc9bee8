#include "drafts.h"

#include <algorithm>

#include "sampler.h"

namespace lfm2 {
namespace {

constexpr size_t kRuns[] = {8, 4, 2};         // tokens that are looked up together
constexpr size_t kDifference = 8;             // tokens behind which a copy and its original may agree again
constexpr double kMemory = 0.1;               // weight of each guess that is judged
constexpr double kDraft = 0.45, kRow = 0.02;  // of a step: what a draft costs, and each guess of it,
constexpr double kBlock = 0.9;                // and every further block of rows
constexpr int64_t kBlockRows = 8;
constexpr int64_t kShort = 2;                 // guesses where drafts have lost
constexpr double kEarned = 0.005, kMost = 8;  // steps that drafts may lose: more with each call, and in all

double cost(int64_t guesses) { return kDraft + kRow * static_cast<double>(guesses) + kBlock * static_cast<double>(guesses / kBlockRows); }

// How many guesses, each right with that probability, give the most tokens for the time; 0 for none.
int64_t best_length(double acceptance, int64_t most) {
  int64_t length = 0;
  double best = 1, expected = 1, power = 1;
  for (int64_t guesses = 1; guesses <= most; ++guesses) {
    expected += power *= acceptance;
    const double gain = expected / (1 + cost(guesses));
    if (gain > best) best = gain, length = guesses;
  }
  return length;
}

using Tokens = std::vector<int64_t>;

bool begins(const Tokens& whole, const Tokens& tokens) {
  return tokens.size() <= whole.size() && std::equal(tokens.begin(), tokens.end(), whole.begin());
}

}  // namespace

Tokens Lookup::guess(const Tokens& seen, int64_t most) {
  if (!begins(seen, indexed_)) {  // it went back, or is another conversation
    ends_.clear(), indexed_.clear();
    original_ = copy_ = 0;
  }
  for (size_t end = std::max<size_t>(indexed_.size(), 1); end < seen.size(); ++end) {
    for (size_t size : kRuns) {
      if (size <= end) ends_[Tokens(seen.begin() + static_cast<int64_t>(end - size), seen.begin() + static_cast<int64_t>(end))] = end;
    }
  }
  indexed_.insert(indexed_.end(), seen.begin() + static_cast<int64_t>(indexed_.size()), seen.end());
  size_t start = behind_run(seen);
  if (start == 0) start = behind_difference(seen);
  if (start == 0) return {};
  original_ = start, copy_ = seen.size();
  Tokens draft(static_cast<size_t>(most));
  for (size_t at = 0; at < draft.size(); ++at) draft[at] = seen[start + at % (seen.size() - start)];
  return draft;
}

size_t Lookup::behind_run(const Tokens& seen) const {
  for (size_t size : kRuns) {
    if (seen.size() <= size) continue;
    const auto found = ends_.find(Tokens(seen.end() - static_cast<int64_t>(size), seen.end()));
    if (found != ends_.end()) return found->second;
  }
  return 0;
}

size_t Lookup::behind_difference(const Tokens& seen) {
  while (copy_ < seen.size() && seen[original_] == seen[copy_]) ++original_, ++copy_;
  if (seen.size() - copy_ > kDifference) return 0;
  for (size_t at = original_ + 1; at <= original_ + kDifference && at + 1 < seen.size(); ++at) {
    if (seen[at] == seen.back()) return at + 1;
  }
  return 0;
}

Tokens SmallerModel::guess(const Tokens& seen, int64_t most) {
  const auto said = static_cast<int64_t>(seen.size()), fed = static_cast<int64_t>(fed_.size());
  if (session_.position() != fed || fed >= said || !begins(seen, fed_)) session_.reset(), fed_.clear();
  most = std::min({most, session_.manifest().max_verified - 1, session_.manifest().window - said});
  if (most < 1) return {};
  if (said - session_.position() > session_.manifest().max_verified - most) {
    session_.feed(Tokens(seen.begin() + session_.position(), seen.end() - 1));
  }
  Tokens row(seen.begin() + session_.position(), seen.end()), draft;
  const auto fresh = static_cast<int64_t>(row.size());
  while (static_cast<int64_t>(draft.size()) < most) {
    const float* logits = session_.verify(row);
    const int64_t vocab = session_.manifest().vocab;
    draft.push_back(greedy(logits + (static_cast<int64_t>(row.size()) - 1) * vocab, vocab));
    row.push_back(draft.back());
  }
  session_.keep(fresh);
  fed_ = seen;
  return draft;
}

Tokens Drafts::propose(const Tokens& seen, int64_t most) {
  credit_ = std::min(kMost, credit_ + kEarned);
  if (credit_ < kCredit) most = std::min(most, kShort);
  int64_t length = best_length(acceptance_, most);
  if (length == 0) length = std::min(most, kShort);
  return length > 0 && cost(length) <= credit_ ? source_.guess(seen, length) : Tokens{};
}

void Drafts::judged(int64_t drafted, int64_t accepted) {
  counts_.drafted += drafted;
  counts_.accepted += accepted;
  credit_ = std::min(kMost, credit_ + static_cast<double>(accepted) - cost(drafted));
  for (int64_t right = 0; right < accepted; ++right) acceptance_ += kMemory * (1 - acceptance_);
  if (accepted < drafted) acceptance_ -= kMemory * acceptance_;
}

void Drafts::decoded(double seconds) {
  ++counts_.single_steps;
  counts_.single_seconds += seconds;
}

}  // namespace lfm2

#include "drafts.h"

#include <algorithm>

#include "failure.h"
#include "sampler.h"

namespace lfm2 {
namespace {

constexpr size_t kLongest = 4, kShortest = 2;  // run of tokens that is looked up
constexpr double kMemory = 0.1;                // weight of each guess that is judged
constexpr double kDraft = 0.4, kRow = 0.04;    // of a step: what a draft costs, and each guess of it,
constexpr double kBlock = 0.9;                 // and every further block of rows
constexpr int64_t kBlockRows = 8;
constexpr int64_t kProbe = 32;  // calls after which a source that was not worth asking is asked again

// How many guesses, each right with that probability, give the most tokens for the time; 0 for none.
int64_t best_length(double acceptance, int64_t most) {
  int64_t length = 0;
  double best = 1, expected = 1, power = 1;
  for (int64_t guesses = 1; guesses <= most; ++guesses) {
    expected += power *= acceptance;
    const double gain = expected / (1 + kDraft + kRow * static_cast<double>(guesses) + kBlock * static_cast<double>(guesses / kBlockRows));
    if (gain > best) best = gain, length = guesses;
  }
  return length;
}

using Tokens = std::vector<int64_t>;

}  // namespace

Tokens Lookup::guess(const Tokens& seen, int64_t most) {
  for (size_t end = std::max<size_t>(indexed_, 1); end < seen.size(); ++end) {
    for (size_t size = kLongest; size >= kShortest; --size) {
      if (size <= end) ends_[Tokens(seen.begin() + static_cast<int64_t>(end - size), seen.begin() + static_cast<int64_t>(end))] = end;
    }
  }
  indexed_ = seen.size();
  for (size_t size = kLongest; size >= kShortest; --size) {
    if (seen.size() <= size) continue;
    const auto found = ends_.find(Tokens(seen.end() - static_cast<int64_t>(size), seen.end()));
    if (found == ends_.end()) continue;
    const size_t start = found->second, period = seen.size() - start;
    Tokens draft(static_cast<size_t>(most));
    for (size_t at = 0; at < draft.size(); ++at) draft[at] = seen[start + at % period];
    return draft;
  }
  return {};
}

SmallerModel::SmallerModel(const Manifest& manifest, int64_t vocab, uint32_t threads) : session_(manifest, threads) {
  if (manifest.vocab != vocab) throw Failure("--draft: another vocabulary than the artifact has");
  if (manifest.max_verified < 2) throw Failure("--draft: cannot take back what it guesses; export it with options.speculation");
}

Tokens SmallerModel::guess(const Tokens& seen, int64_t most) {
  const auto said = static_cast<int64_t>(seen.size());
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
  return draft;
}

Tokens Drafts::propose(const Tokens& seen, int64_t most) {
  const int64_t length = best_length(acceptance_, most);
  if (length == 0 && since_ < kProbe) {
    ++since_;
    return {};
  }
  since_ = 0;
  return most > 0 ? source_->guess(seen, std::min<int64_t>(length == 0 ? 2 : length, most)) : Tokens{};
}

void Drafts::judged(int64_t drafted, int64_t accepted) {
  drafted_ += drafted;
  accepted_ += accepted;
  for (int64_t right = 0; right < accepted; ++right) acceptance_ += kMemory * (1 - acceptance_);
  if (accepted < drafted) acceptance_ -= kMemory * acceptance_;
}

}  // namespace lfm2

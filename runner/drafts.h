// Guesses at the next tokens, which a session verifies together: as lfm2_export/chat/drafts.py, which says why.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "session.h"

namespace lfm2 {

// Whoever guesses: up to `most` tokens that may follow all that was `seen`, fewer or none where it has no idea.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::vector<int64_t> guess(const std::vector<int64_t>& seen, int64_t most) = 0;
};

// What followed the longest run of last tokens, of 8, 4 or 2, the last time it occurred, again and again where it is short;
// where none did, what followed the last token behind a difference of the last draft's copy.
class Lookup : public Source {
 public:
  std::vector<int64_t> guess(const std::vector<int64_t>& seen, int64_t most) override;

 private:
  size_t behind_run(const std::vector<int64_t>& seen) const;   // 0 for none
  size_t behind_difference(const std::vector<int64_t>& seen);  // 0 for none

  std::map<std::vector<int64_t>, size_t> ends_;  // run of tokens → where its last occurrence ends
  std::vector<int64_t> indexed_;  // what `ends_` is about
  size_t original_ = 0, copy_ = 0;  // from where and to where the last draft copied; the text itself, at first
};

// What a smaller model of the same vocabulary would say. It is fed only what was said; what it guesses it verifies
// behind that and never keeps.
class SmallerModel : public Source {
 public:
  SmallerModel(const ArtifactFiles& artifact, const Manifest& manifest, uint32_t threads) : session_(artifact, manifest, threads) {}
  std::vector<int64_t> guess(const std::vector<int64_t>& seen, int64_t most) override;

 private:
  Session session_;
  std::vector<int64_t> fed_;  // the tokens behind its state
};

// A source, how long its drafts are, by how many guesses were right lately, and what became of them; they pay for
// themselves. For one reply.
class Drafts {
 public:
  explicit Drafts(Source& source) : source_(source) {}

  // Guesses at what follows, at most that many; none that there is no credit for. Once for each call.
  std::vector<int64_t> propose(const std::vector<int64_t>& seen, int64_t most);
  void judged(int64_t drafted, int64_t accepted);
  void decoded(double seconds);  // one token alone

  struct Counts {
    int64_t drafted = 0, accepted = 0;
    int64_t single_steps = 0;  // tokens decoded one by one beside the drafts
    double single_seconds = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  Source& source_;
  Counts counts_;
  static constexpr double kPrior = 0.65;  // acceptance before anything is known
  double acceptance_ = kPrior;
  static constexpr double kCredit = 2;  // steps that drafts may lose, at first
  double credit_ = kCredit;
};

}  // namespace lfm2

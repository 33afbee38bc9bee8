#include "generation.h"

#include <algorithm>
#include <chrono>
#include <optional>

namespace lfm2 {
namespace {

using Tokens = std::vector<int64_t>;

bool among(int64_t token, const Tokens& tokens) { return std::find(tokens.begin(), tokens.end(), token) != tokens.end(); }

Tokens guesses_at(Drafts* drafts, const Tokens& seen, int64_t left, const Session& session) {
  const Manifest& manifest = session.manifest();
  const int64_t room = std::min({left, manifest.window - session.position(), manifest.max_verified}) - 1;
  return drafts == nullptr ? Tokens{} : drafts->propose(seen, room);
}

}  // namespace

Generated generate(Session& session, const float* logits, Tokens& seen, const Tokens& stop, int64_t most, Sampler& sampler,
                   Drafts* drafts, const std::function<void(int64_t)>& said) {
  const int64_t vocab = session.manifest().vocab;
  Generated made;
  std::optional<int64_t> drawn;  // the next token, where a draft's verdict has drawn it already
  while (!made.stopped && static_cast<int64_t>(made.tokens.size()) < most && session.position() < session.manifest().window) {
    const int64_t left = most - static_cast<int64_t>(made.tokens.size());
    seen.push_back(drawn ? *drawn : sampler(logits, vocab, seen));
    drawn.reset();
    const Tokens guesses = guesses_at(drafts, seen, left, session);
    const size_t first = seen.size() - 1;
    if (guesses.empty()) {
      const auto started = std::chrono::steady_clock::now();
      logits = session.feed({seen.back()});
      if (drafts != nullptr) drafts->decoded(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    } else {
      Tokens row = {seen.back()};
      row.insert(row.end(), guesses.begin(), guesses.end());
      logits = session.verify(row);
      for (size_t i = 0; i < guesses.size() && !among(seen.back(), stop); ++i, logits += vocab) {
        const int64_t token = sampler(logits, vocab, seen);
        if (token != guesses[i]) {
          drawn = token;
          break;
        }
        seen.push_back(token);
      }
      session.keep(static_cast<int64_t>(seen.size() - first));
      drafts->judged(static_cast<int64_t>(guesses.size()), static_cast<int64_t>(seen.size() - first) - 1);
    }
    made.fed += seen.size() - first;
    made.stopped = among(seen.back(), stop);
    const size_t end = seen.size() - (made.stopped ? 1 : 0);
    for (size_t at = first; at < end; ++at) {
      made.tokens.push_back(seen[at]);
      said(seen[at]);
    }
  }
  return made;
}

}  // namespace lfm2

// From a prompt that was fed to new tokens: the loop that `generate` and `chat` share.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "drafts.h"
#include "sampler.h"
#include "session.h"

namespace lfm2 {

struct Generated {
  std::vector<int64_t> tokens;  // without the stop token
  size_t fed = 0;               // with it
  bool stopped = false;
};

// Goes on from the `logits` behind all that was `seen`, by at most `most` tokens, until one of `stop` or the window's
// edge. What was fed is added to `seen`, the stop token too: a next turn goes on from there. `drafts`, which may be
// null, change the time it takes and not the tokens. Each token but the stop token is given to `said` once it is fed.
Generated generate(Session& session, const float* logits, std::vector<int64_t>& seen, const std::vector<int64_t>& stop,
                   int64_t most, Sampler& sampler, Drafts* drafts, const std::function<void(int64_t)>& said);

}  // namespace lfm2

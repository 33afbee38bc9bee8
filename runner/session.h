// One conversation: the caller's side of the in-place transport, batch 1.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "memory.h"
#include "program.h"

namespace lfm2 {

// A state tensor in the program's own layout: caches [kv_heads, window, 1, head_dim], conv states [1, L-1, hidden].
struct StateTensor {
  TensorSpec spec;
  std::unique_ptr<char, decltype(&std::free)> data{nullptr, &std::free};
  size_t bytes = 0;
  bool cache = false;

  // As runs of bytes that belong to the first `position` tokens: per head of a cache, all of a conv state.
  size_t runs() const { return cache ? static_cast<size_t>(spec.shape[0]) : 1; }
  size_t run_stride() const { return bytes / runs(); }
  size_t run_bytes(int64_t position) const;
};

class Session {
 public:
  // Failure as Program's, or without memory for the state. Of `artifact` nothing is asked later.
  Session(const ArtifactFiles& artifact, const Manifest& manifest, uint32_t threads);

  // Goes on with at least one token, in calls of at most max_tokens. Logits [vocab] of the last one, valid until the
  // next call. Failure for no token or an id outside the vocabulary, WindowExceeded past the window; then nothing
  // has changed.
  const float* feed(const std::vector<int64_t>& tokens);

  // Logits [T, vocab] after each of the tokens, valid until the next call, as if they came next: `keep` takes the first
  // of them into the conversation, any other call lets go of them all. Failure and WindowExceeded as above, and for
  // more tokens than the artifact verifies at once.
  const float* verify(const std::vector<int64_t>& tokens);

  // Failure for more tokens than the `verify` before has verified.
  void keep(int64_t count);

  // A new conversation: conv states are zeroed; of the caches attention sees only columns below the position.
  void reset();

  // Where a restored state goes on. Failure past the window.
  void stand_at(int64_t position);

  // Waits until the weights that are packed so far lie on huge pages, where there are such.
  void settle();

  int64_t position() const { return position_; }
  std::vector<StateTensor>& state() { return state_; }
  const Manifest& manifest() const { return manifest_; }
  size_t threads() const { return program_.threads(); }

 private:
  void check_room(const std::vector<int64_t>& tokens) const;
  void move_weights();

  Manifest manifest_;
  HugePages pages_;  // before the program is loaded
  Program program_;
  std::vector<StateTensor> state_;
  int64_t position_ = 0;
  int64_t verified_ = 0;               // tokens of the last `verify`, until they are kept or let go of
  std::vector<const float*> columns_;  // of each conv state, in that call
  bool has_fed_ = false, has_verified_ = false;
  std::future<void> moving_;  // ends before the rest of the session does
};

}  // namespace lfm2

// A session for another process: requests on stdin, answers on stdout, until stdin ends.
//
// Each message is a line of JSON, followed by as many raw bytes as its "bytes" says (none if it says nothing).
//   {"do": "feed", "tokens": […]}     → logits, float32 [vocab]
//   {"do": "verify", "tokens": […]}   → logits, float32 [T, vocab], as if the tokens came next
//   {"do": "keep", "count": n}        takes the first n of them into the conversation, if nothing came in between
//   {"do": "reset"}
//   {"do": "state"}                   → the state up to the position: the tensors of the manifest one after the other,
//                                       each in its own layout and dtype, caches cut to the position
//   {"do": "restore", "position": n, "bytes": …}, then the same bytes
//   {"do": "memory"}                  → "resident_bytes", "peak_bytes", once the weights lie where they stay
// Answers carry "position", or "error" ("window": true where the window was the reason) and then nothing has changed.
#pragma once

#include "session.h"

namespace lfm2 {

// `hello` is the first line. Failure when a request cannot be told from the next one.
void serve(Session& session, const std::string& hello);

}  // namespace lfm2

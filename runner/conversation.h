// A chat over a session: the template rendered, only what is new fed, the reply streamed as text. As
// lfm2_export/chat/conversation.py and overflow.py, which say why.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "drafts.h"
#include "sampler.h"
#include "session.h"
#include "text_process.h"

namespace lfm2 {

struct Turn {
  size_t prompt_tokens = 0;  // fed
  size_t cached_tokens = 0;  // of the prompt, not fed: the state had them already
  size_t new_tokens = 0;
  size_t forgotten_turns = 0;  // the oldest ones, before it, since the window was full
  double prompt_seconds = 0, new_seconds = 0;
  Drafts::Counts drafts;
};

class Conversation {
 public:
  // `forget`: a full window costs the oldest turns; else the turn that does not fit is refused. `source` of drafts, or null.
  Conversation(Session& session, TextProcess& text, const Sampling& sampling, const std::vector<int64_t>& stop, bool forget, Source* source);

  void begin_with_system(const std::string& text);

  // Starts over; a system message stays.
  void reset();

  // Writes the conversation and its state, for `resume` here or in Python; see state_file.h. A sampler's randomness is not
  // in it.
  void save(const std::string& path, bool force);

  // Goes on from such a file, with the system message that it holds.
  void resume(const std::string& path);

  // Says `text` as the user and streams the answer, at most `limit` tokens. A turn that is refused (WindowExceeded,
  // TextRefused) has not taken place.
  Turn reply(const std::string& text, int64_t limit, const std::function<void(const std::string&)>& show);

 private:
  Turn answer(int64_t limit, const std::function<void(const std::string&)>& show);
  std::vector<int64_t> rendered();
  std::vector<int64_t> wanted(int64_t limit, size_t& forgotten);
  size_t known(const std::vector<int64_t>& prompt);
  void forget_state();

  Session& session_;
  TextProcess& text_;
  Sampler sampler_;
  std::vector<int64_t> stop_;
  bool forget_;
  Source* source_;
  OrderedJson messages_ = OrderedJson::array(), tools_;
  std::vector<int64_t> fed_;  // the tokens behind the session's state
};

}  // namespace lfm2

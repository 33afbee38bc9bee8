// A chat over a session: the template rendered, only what is new fed, the reply streamed as text. As
// lfm2_export/chat/conversation.py and overflow.py, which say why.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

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
  int64_t drafted = 0, accepted = 0;
};

class Conversation {
 public:
  // `forget`: a full window costs the oldest turns; else the turn that does not fit is refused. `lookup`: drafts.
  Conversation(Session& session, TextProcess& text, const Sampling& sampling, const std::vector<int64_t>& stop, bool forget, bool lookup);

  void begin_with_system(const std::string& text);

  // Starts over; a system message stays.
  void reset();

  // Says `text` as the user and streams the answer, at most `limit` tokens. A turn that is refused (WindowExceeded,
  // TextRefused) has not taken place.
  Turn reply(const std::string& text, int64_t limit, const std::function<void(const std::string&)>& show);

 private:
  Turn answer(int64_t limit, const std::function<void(const std::string&)>& show);
  std::vector<int64_t> rendered();
  std::vector<int64_t> wanted(int64_t limit, size_t& forgotten);
  size_t known(const std::vector<int64_t>& prompt);

  Session& session_;
  TextProcess& text_;
  Sampler sampler_;
  std::vector<int64_t> stop_;
  bool forget_, lookup_;
  Json messages_ = Json::array();
  std::vector<int64_t> fed_;  // the tokens behind the session's state
};

}  // namespace lfm2

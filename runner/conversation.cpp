#include "conversation.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "drafts.h"
#include "generation.h"

namespace lfm2 {
namespace {

using Tokens = std::vector<int64_t>;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool is_of(const Json& message, const char* role) { return message.at("role") == role; }

// The messages but for the first user's and what answered it; null where only the latest turn is left.
Json without_oldest_turn(const Json& messages) {
  Json kept = Json::array();
  size_t turns = 0;
  for (const Json& message : messages) {
    turns += is_of(message, "user");
    if (turns == 0 ? is_of(message, "system") : turns > 1) kept.push_back(message);
  }
  return turns < 2 ? Json() : kept;
}

}  // namespace

Conversation::Conversation(Session& session, TextProcess& text, const Sampling& sampling, const Tokens& stop, bool forget, bool lookup)
    : session_(session), text_(text), sampler_(sampling), stop_(stop), forget_(forget), lookup_(lookup) {}

void Conversation::begin_with_system(const std::string& text) { messages_.push_back({{"role", "system"}, {"content", text}}); }

void Conversation::reset() {
  Json kept = Json::array();
  for (const Json& message : messages_) {
    if (is_of(message, "system")) kept.push_back(message);
  }
  messages_ = kept;
}

Turn Conversation::reply(const std::string& text, int64_t limit, const std::function<void(const std::string&)>& show) {
  const Json said = messages_;
  messages_.push_back({{"role", "user"}, {"content", text}});
  try {
    return answer(limit, show);
  } catch (const Failure&) {
    messages_ = said;
    throw;
  }
}

Turn Conversation::answer(int64_t limit, const std::function<void(const std::string&)>& show) {
  Turn turn;
  Tokens seen = wanted(limit, turn.forgotten_turns);
  turn.cached_tokens = known(seen);
  const Tokens prompt(seen.begin() + static_cast<int64_t>(turn.cached_tokens), seen.end());
  turn.prompt_tokens = prompt.size();
  auto started = Clock::now();
  const float* logits = session_.feed(prompt);
  fed_ = seen;
  turn.prompt_seconds = seconds_since(started);

  const std::unique_ptr<Drafts> drafts = lookup_ ? std::make_unique<Drafts>(std::make_unique<Lookup>()) : nullptr;
  text_.ask({{"next", nullptr}});
  std::string reply;
  const auto say = [&](int64_t token) {
    const std::string piece = text_field(text_.ask({{"next", token}}), "text", "text");
    reply += piece;
    if (!piece.empty()) show(piece);
  };
  started = Clock::now();
  try {
    turn.new_tokens = generate(session_, logits, seen, stop_, limit, sampler_, drafts.get(), say).tokens.size();
  } catch (const Failure&) {
    fed_.clear();  // what the session has seen is known no more
    throw;
  }
  turn.new_seconds = seconds_since(started);
  fed_.assign(seen.begin(), seen.begin() + session_.position());
  if (drafts) turn.drafted = drafts->drafted(), turn.accepted = drafts->accepted();
  messages_.push_back({{"role", "assistant"}, {"content", reply}});
  return turn;
}

Tokens Conversation::rendered() {
  return token_field(text_.ask({{"messages", messages_}}), "tokens", session_.manifest().vocab, "chat template");
}

// Half the window stays once turns are forgotten, so that most turns after it feed only what is new; a quarter of it is
// left for the longest reply.
Tokens Conversation::wanted(int64_t limit, size_t& forgotten) {
  Tokens prompt = rendered();
  const int64_t window = session_.manifest().window;
  if (!forget_ || static_cast<int64_t>(prompt.size()) + std::min(limit, window / 4) <= window) return prompt;
  while (static_cast<int64_t>(prompt.size()) > window / 2) {
    Json later = without_oldest_turn(messages_);
    if (later.is_null()) break;
    messages_ = std::move(later);
    ++forgotten;
    prompt = rendered();
  }
  return prompt;
}

// How much of the prompt the session has seen already; it is reset where the prompt does not go on from there.
size_t Conversation::known(const Tokens& prompt) {
  const bool goes_on = !fed_.empty() && session_.position() == static_cast<int64_t>(fed_.size()) && fed_.size() < prompt.size() &&
                       std::equal(fed_.begin(), fed_.end(), prompt.begin());
  if (!goes_on) {
    session_.reset();
    fed_.clear();
  }
  return fed_.size();
}

}  // namespace lfm2

#include "conversation.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "generation.h"
#include "state_file.h"

namespace lfm2 {
namespace {

using Tokens = std::vector<int64_t>;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool is_of(const OrderedJson& message, const char* role) { return message.at("role") == role; }

// The messages but for the first user's and what answered it; null where only the latest turn is left.
OrderedJson without_oldest_turn(const OrderedJson& messages) {
  OrderedJson kept = OrderedJson::array();
  size_t turns = 0;
  for (const OrderedJson& message : messages) {
    turns += is_of(message, "user");
    if (turns == 0 ? is_of(message, "system") : turns > 1) kept.push_back(message);
  }
  return turns < 2 ? OrderedJson() : kept;
}

}  // namespace

Conversation::Conversation(Session& session, TextProcess& text, const Sampling& sampling, const Tokens& stop, bool forget, Source* source)
    : session_(session), text_(text), sampler_(sampling), stop_(stop), forget_(forget), source_(source) {}

void Conversation::begin_with_system(const std::string& text) { messages_.push_back({{"role", "system"}, {"content", text}}); }

void Conversation::reset() {
  OrderedJson kept = OrderedJson::array();
  for (const OrderedJson& message : messages_) {
    if (is_of(message, "system")) kept.push_back(message);
  }
  messages_ = kept;
  forget_state();
}

void Conversation::save(const std::string& path, bool force) { save_state(path, session_, {fed_, messages_, tools_}, force); }

void Conversation::resume(const std::string& path) {
  Said said = load_state(path, session_);
  fed_ = std::move(said.tokens);
  messages_ = std::move(said.messages);
  tools_ = std::move(said.tools);
}

Turn Conversation::reply(const std::string& text, int64_t limit, const std::function<void(const std::string&)>& show) {
  const OrderedJson said = messages_;
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

  std::optional<Drafts> drafts;
  if (source_ != nullptr) drafts.emplace(*source_);
  text_.ask({{"next", nullptr}});
  std::string reply;
  const auto say = [&](int64_t token) {
    const std::string piece = text_field(text_.ask({{"next", token}}), "text", "text");
    reply += piece;
    if (!piece.empty()) show(piece);
  };
  started = Clock::now();
  try {
    turn.new_tokens = generate(session_, logits, seen, stop_, limit, sampler_, drafts ? &*drafts : nullptr, say).tokens.size();
  } catch (const Failure&) {
    forget_state();  // what the session has seen is known no more
    throw;
  }
  turn.new_seconds = seconds_since(started);
  fed_.assign(seen.begin(), seen.begin() + session_.position());
  if (drafts) turn.drafts = drafts->counts();
  messages_.push_back({{"role", "assistant"}, {"content", reply}});
  return turn;
}

Tokens Conversation::rendered() {
  return token_field(text_.ask({{"messages", messages_}, {"tools", tools_}}), "tokens", session_.manifest().vocab, "chat template");
}

// Half the window stays once turns are forgotten, so that most turns after it feed only what is new; a quarter of it is
// left for the longest reply.
Tokens Conversation::wanted(int64_t limit, size_t& forgotten) {
  Tokens prompt = rendered();
  const int64_t window = session_.manifest().window;
  if (!forget_ || static_cast<int64_t>(prompt.size()) + std::min(limit, window / 4) <= window) return prompt;
  while (static_cast<int64_t>(prompt.size()) > window / 2) {
    OrderedJson later = without_oldest_turn(messages_);
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
  if (!goes_on) forget_state();
  return fed_.size();
}

void Conversation::forget_state() {
  session_.reset();
  fed_.clear();
}

}  // namespace lfm2

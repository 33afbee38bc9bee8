#include "chat.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "conversation.h"

namespace lfm2 {
namespace {

constexpr const char* kSpace = " \t\n\v\f\r\x1c\x1d\x1e\x1f";  // of ASCII, as Python's strip

std::string stripped(const std::string& line) {
  const size_t start = line.find_first_not_of(kSpace);
  return start == std::string::npos ? "" : line.substr(start, line.find_last_not_of(kSpace) + 1 - start);
}

void show(const std::string& piece) {
  std::fwrite(piece.data(), 1, piece.size(), stdout);
  std::fflush(stdout);
}

double rate(size_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

void report(const Turn& turn) {
  if (turn.forgotten_turns > 0) std::fprintf(stderr, "the window was full: forgot the oldest %zu turn(s)\n", turn.forgotten_turns);
  std::fprintf(stderr, "prefill %zu tokens", turn.prompt_tokens);
  if (turn.cached_tokens > 0) std::fprintf(stderr, " (%zu more from cache)", turn.cached_tokens);
  std::fprintf(stderr, " at %.0f tok/s, decode %zu tokens at %.0f tok/s", rate(turn.prompt_tokens, turn.prompt_seconds), turn.new_tokens,
               rate(turn.new_tokens, turn.new_seconds));
  if (turn.drafted > 0) {
    std::fprintf(stderr, " (accepted %lld of %lld drafted)", static_cast<long long>(turn.accepted), static_cast<long long>(turn.drafted));
  }
  std::fputc('\n', stderr);
}

void say(Conversation& conversation, const std::string& text, int64_t limit) {
  try {
    const Turn turn = conversation.reply(text, limit, show);
    show("\n");
    report(turn);
  } catch (const WindowExceeded& failure) {
    std::fprintf(stderr, "the conversation is full: %s; /reset starts over, and a chat begun with --on-full forget goes on without the oldest turns\n",
                 one_line(failure.what()).c_str());
  } catch (const TextRefused& failure) {
    std::fprintf(stderr, "%s\n", one_line(failure.what()).c_str());
  }
}

}  // namespace

void chat(Session& session, TextProcess& text, const ChatOptions& options) {
  Conversation conversation(session, text, options.sampling, options.stop, options.forget, options.lookup);
  if (!options.system.empty()) conversation.begin_with_system(options.system);
  const bool person = ::isatty(0) == 1;
  if (person) std::fprintf(stderr, "/reset starts over, /exit leaves\n");
  std::string line;
  while ((person ? std::fprintf(stderr, "> ") : 0, std::getline(std::cin, line))) {
    const std::string said = stripped(line);
    if (said == "/exit") return;
    if (said == "/reset") {
      conversation.reset();
    } else if (!said.empty() && said[0] == '/') {
      std::fprintf(stderr, "no command %s; there are /reset and /exit\n", said.substr(0, 40).c_str());
    } else if (!said.empty()) {
      say(conversation, said, options.max_new);
    }
  }
}

void serve_text(TextProcess& text) {
  for (std::string line; std::getline(std::cin, line);) show(text.ask_line(line) + "\n");
}

}  // namespace lfm2

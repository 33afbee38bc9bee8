#include "chat.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "conversation.h"

namespace lfm2 {
namespace {

constexpr const char* kCommands = "/save FILE, /load FILE, /reset, which starts over, and /exit";
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
  if (turn.forgotten_turns > 0) {
    const std::string turns = turn.forgotten_turns == 1 ? "turn" : std::to_string(turn.forgotten_turns) + " turns";
    std::fprintf(stderr, "the window was full: forgot the oldest %s\n", turns.c_str());
  }
  std::fprintf(stderr, "prefill %zu tokens", turn.prompt_tokens);
  if (turn.cached_tokens > 0) std::fprintf(stderr, " (%zu more from cache)", turn.cached_tokens);
  std::fprintf(stderr, " at %.0f tok/s, decode %zu tokens at %.0f tok/s", rate(turn.prompt_tokens, turn.prompt_seconds), turn.new_tokens,
               rate(turn.new_tokens, turn.new_seconds));
  const Drafts::Counts& drafts = turn.drafts;
  if (drafts.drafted > 0) {
    if (drafts.single_seconds > 0) std::fprintf(stderr, ", %.0f without", rate(static_cast<size_t>(drafts.single_steps), drafts.single_seconds));
    std::fprintf(stderr, " (accepted %lld of %lld drafted)", static_cast<long long>(drafts.accepted), static_cast<long long>(drafts.drafted));
  }
  std::fputc('\n', stderr);
}

class Talk {
 public:
  Talk(Session& session, TextProcess& text, const ChatOptions& options)
      : session_(session), options_(options), conversation_(session, text, options.sampling, options.stop, options.forget, options.source) {
    if (!options.load.empty()) conversation_.resume(options.load);
    if (!options.system.empty()) conversation_.begin_with_system(options.system);
  }

  // One line of the user's. What it cannot do is said, and the talk goes on.
  void hear(const std::string& line) {
    try {
      if (line[0] == '/') obey(line);
      else say(line);
    } catch (const WindowExceeded& failure) {
      note(std::string("the conversation is full: ") + failure.what() +
               "; /reset starts over, and a chat begun with --on-full forget goes on without the oldest turns");
    } catch (const TextRefused& failure) {
      note(failure.what());
    }
  }

  void save(const std::string& path) { conversation_.save(path, options_.force); }

 private:
  void say(const std::string& text) {
    const Turn turn = conversation_.reply(text, options_.max_new, show);
    show("\n");
    report(turn);
  }

  void obey(const std::string& line) {
    const size_t end = std::min(line.find(' '), line.size());
    const std::string name = line.substr(0, end), argument = stripped(line.substr(end));
    if (name == "/reset" && argument.empty()) {
      conversation_.reset();
      note("started over");
    } else if ((name == "/save" || name == "/load") && !argument.empty()) {
      carry(name, argument);
    } else {
      note("no command " + line.substr(0, 40) + "; there are " + kCommands);
    }
  }

  void carry(const std::string& name, const std::string& path) {
    try {
      if (name == "/save") save(path);
      else conversation_.resume(path);
      note((name == "/save" ? "saved " : "loaded ") + path + "; " + std::to_string(session_.position()) + " of " +
               std::to_string(session_.manifest().window) + " tokens");
    } catch (const Failure& failure) {
      note(failure.what());
    }
  }

  static void note(const std::string& text) { std::fprintf(stderr, "%s\n", one_line(text).c_str()); }

  Session& session_;
  const ChatOptions& options_;
  Conversation conversation_;
};

}  // namespace

void chat(Session& session, TextProcess& text, const ChatOptions& options) {
  Talk talk(session, text, options);
  const bool person = ::isatty(0) == 1;
  if (person) std::fprintf(stderr, "%s\n", kCommands);
  std::string line;
  while ((person ? std::fprintf(stderr, "> ") : 0, std::getline(std::cin, line))) {
    line = stripped(line);
    if (line == "/exit") break;
    if (!line.empty()) talk.hear(line);
  }
  if (!options.save.empty()) talk.save(options.save);
}

void serve_text(TextProcess& text) {
  for (std::string line; std::getline(std::cin, line);) show(text.ask_line(line) + "\n");
}

}  // namespace lfm2

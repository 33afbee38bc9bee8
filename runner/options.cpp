#include "options.h"

#include <getopt.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "failure.h"
#include "files.h"
#include "json_fields.h"

namespace lfm2 {

const char* const kUsage =
    "usage: lfm2_runner generate ARTIFACT --tokens 1,2,3 | --tokens-file FILE [options]\n"
    "       lfm2_runner chat ARTIFACT [options]          text from stdin, a line a turn; replies to stdout\n"
    "       lfm2_runner text ARTIFACT                    for another process: see text_process.h\n"
    "       lfm2_runner golden ARTIFACT [GOLDEN.json] [--threads N]\n"
    "       lfm2_runner serve ARTIFACT [--threads N]     for another process: see serve.h\n"
    "ARTIFACT: the folder of an artifact, or the archive that lfm2-export bundle made of it\n"
    "\n"
    "generate: continues the tokens and prints the new ones and tok/s, load time and memory as JSON\n"
    "  --max-new N                 most new tokens [64; of a reply in a chat, 256]\n"
    "  --stop 7,8                  tokens that end it [the artifact's own]; --stop none\n"
    "  --greedy                    the likeliest token, always; otherwise\n"
    "  --temperature T             [0.3]   --min-p P [0.15]   --repetition-penalty R [1.05]   --seed N [0]\n"
    "  --draft lookup|ARTIFACT     verify several tokens at once, guessed from what was said or by a smaller model\n"
    "  --load-state FILE           go on from there; the tokens, or in a chat the lines, are what comes next\n"
    "  --save-state FILE [--force] where the conversation stands at the end, for later\n"
    "  --threads N                 [as many as ExecuTorch thinks fit]\n"
    "chat: the options above but for tokens, and\n"
    "  --system TEXT               [none]\n"
    "  --on-full stop|forget       where the window is full: refuse the turn, or forget the oldest ones [stop]\n";

namespace {

int64_t number(const std::string& text, int64_t least, int64_t most, const char* option) {
  try {
    return whole(parse_json(text, option), least, most, option);
  } catch (const Failure&) {
    throw Failure(std::string(option) + " " + text.substr(0, 40) + ": expected a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }
}

double real(const std::string& text, double least, double most, const char* option) {
  const Json value = parse_json(text, option);
  if (!value.is_number() || !(value.get<double>() >= least && value.get<double>() <= most)) {
    throw Failure(std::string(option) + " " + text.substr(0, 40) + ": expected a number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<double>();
}

std::vector<int64_t> numbers(const std::string& text, const char* option) {
  std::vector<int64_t> found;
  size_t start = 0;
  while (start <= text.size()) {
    const size_t end = std::min(text.find(',', start), text.size());
    found.push_back(number(text.substr(start, end - start), 0, INT64_MAX, option));
    start = end + 1;
  }
  return found;
}

std::vector<int64_t> numbers_in_file(const std::string& path) {
  std::string text = read_file(path, 64 << 20);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return numbers(text, "--tokens-file");
}

// Whether it is the second of two words.
bool one_of(const std::string& text, const char* first, const char* second, const char* option) {
  if (text != first && text != second) throw Failure(std::string(option) + " " + text.substr(0, 40) + ": expected " + first + " or " + second);
  return text == second;
}

}  // namespace

Options parse_options(int count, char** words) {
  enum { kTokens = 256, kTokensFile, kMaxNew, kStop, kGreedy, kTemperature, kMinP, kPenalty, kSeed, kDraft, kLoad, kSave, kForce, kThreads, kSystem, kOnFull };
  static const option known[] = {{"tokens", 1, nullptr, kTokens}, {"tokens-file", 1, nullptr, kTokensFile}, {"max-new", 1, nullptr, kMaxNew},
                                 {"stop", 1, nullptr, kStop}, {"greedy", 0, nullptr, kGreedy}, {"temperature", 1, nullptr, kTemperature},
                                 {"min-p", 1, nullptr, kMinP}, {"repetition-penalty", 1, nullptr, kPenalty}, {"seed", 1, nullptr, kSeed},
                                 {"draft", 1, nullptr, kDraft}, {"load-state", 1, nullptr, kLoad}, {"save-state", 1, nullptr, kSave}, {"force", 0, nullptr, kForce},
                                 {"threads", 1, nullptr, kThreads}, {"system", 1, nullptr, kSystem}, {"on-full", 1, nullptr, kOnFull}, {}};
  Options options;
  opterr = 0;
  for (int found; (found = getopt_long(count, words, "", known, nullptr)) != -1;) {
    const std::string value = optarg == nullptr ? "" : optarg;
    switch (found) {
      case kTokens: options.tokens = numbers(value, "--tokens"); break;
      case kTokensFile: options.tokens = numbers_in_file(value); break;
      case kMaxNew: options.max_new = number(value, 0, 1 << 24, "--max-new"); break;
      case kStop: options.stop = value == "none" ? std::vector<int64_t>{} : numbers(value, "--stop"); break;
      case kGreedy: options.sampling.temperature = 0; break;
      case kTemperature: options.sampling.temperature = real(value, 0, 100, "--temperature"); break;
      case kMinP: options.sampling.min_p = real(value, 0, 1, "--min-p"); break;
      case kPenalty: options.sampling.repetition_penalty = real(value, 0.01, 100, "--repetition-penalty"); break;
      case kSeed: options.sampling.seed = static_cast<uint32_t>(number(value, 0, UINT32_MAX, "--seed")); break;
      case kDraft: options.draft = value; break;
      case kLoad: options.load = value; break;
      case kSave: options.save = value; break;
      case kForce: options.force = true; break;
      case kSystem: options.system = value; break;
      case kOnFull: options.forget = one_of(value, "stop", "forget", "--on-full"); break;
      case kThreads: options.threads = static_cast<uint32_t>(number(value, 1, 1024, "--threads")); break;
      default: throw Failure(std::string("unknown or incomplete option ") + words[optind - 1] + "; see lfm2_runner --help");
    }
  }
  const std::vector<std::string> places(words + optind, words + count);
  const std::set<std::string> commands = {"generate", "chat", "text", "golden", "serve"};
  const size_t most = !places.empty() && places[0] == "golden" ? 3 : 2;
  if (places.size() < 2 || places.size() > most || commands.count(places[0]) == 0) {
    throw Failure("expected generate, chat, text, golden or serve and what they need; see lfm2_runner --help");
  }
  options.command = places[0];
  options.artifact = places[1];
  if (places.size() == 3) options.golden = places[2];
  return options;
}

}  // namespace lfm2

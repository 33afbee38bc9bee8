// lfm2_runner: an explicit-state .pte of lfm2-export, run by ExecuTorch's C++ libraries alone. One JSON line on stdout, or
// in a chat the replies; errors are one line on stderr. Exit codes: 0 done, 1 a golden case failed, 2 misuse or a file
// that cannot be trusted.
#include <getopt.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <optional>
#include <set>

#include "chat.h"
#include "drafts.h"
#include "failure.h"
#include "files.h"
#include "generation.h"
#include "golden.h"
#include "json_fields.h"
#include "memory.h"
#include "sampler.h"
#include "serve.h"
#include "session.h"
#include "state_file.h"
#include "text_process.h"

namespace lfm2 {
namespace {

constexpr const char* kUsage =
    "usage: lfm2_runner generate ARTIFACT --tokens 1,2,3 | --tokens-file FILE [options]\n"
    "       lfm2_runner chat ARTIFACT [options]          text from stdin, a line a turn; replies to stdout\n"
    "       lfm2_runner text ARTIFACT                    for another process: see text_process.h\n"
    "       lfm2_runner golden ARTIFACT GOLDEN.json [--threads N]\n"
    "       lfm2_runner serve ARTIFACT [--threads N]     for another process: see serve.h\n"
    "\n"
    "generate: continues the tokens and prints the new ones and tok/s, load time and memory as JSON\n"
    "  --max-new N                 most new tokens [64; of a reply in a chat, 256]\n"
    "  --stop 7,8                  tokens that end it [the artifact's own]; --stop none\n"
    "  --greedy                    the likeliest token, always; otherwise\n"
    "  --temperature T             [0.3]   --min-p P [0.15]   --repetition-penalty R [1.05]   --seed N [0]\n"
    "  --draft lookup|ARTIFACT     verify several tokens at once, guessed from what was said or by a smaller model\n"
    "  --load-state FILE           go on from there; the tokens are what comes next\n"
    "  --save-state FILE [--force] where the conversation stands at the end, for later\n"
    "  --threads N                 [as many as ExecuTorch thinks fit]\n"
    "chat: the options above but for states, --draft lookup alone, and\n"
    "  --system TEXT               [none]\n"
    "  --on-full stop|forget       where the window is full: refuse the turn, or forget the oldest ones [stop]\n";

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Options {
  std::string command, artifact, golden;
  std::vector<int64_t> tokens;
  std::optional<std::vector<int64_t>> stop;
  std::optional<int64_t> max_new;
  uint32_t threads = 0;
  Sampling sampling;
  std::string draft, load, save, system;
  bool forget = false;
  bool force = false;
};

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

Options parse(int count, char** words) {
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
  const size_t wanted = !places.empty() && places[0] == "golden" ? 3 : 2;
  const std::set<std::string> commands = {"generate", "chat", "text", "golden", "serve"};
  if (places.size() != wanted || commands.count(places[0]) == 0) {
    throw Failure("expected generate, chat, text, golden or serve and what they need; see lfm2_runner --help");
  }
  options.command = places[0];
  options.artifact = places[1];
  if (wanted == 3) options.golden = places[2];
  return options;
}

Json facts(const Session& session, double load_seconds, uint64_t baseline) {
  return {{"runtime", "executorch " LFM2_EXECUTORCH_VERSION}, {"window", session.manifest().window}, {"vocab", session.manifest().vocab},
          {"threads", session.threads()}, {"load_seconds", load_seconds}, {"baseline_bytes", baseline}};
}

Json rate(size_t tokens, double seconds) {
  return {{"tokens", tokens}, {"seconds", seconds}, {"tokens_per_second", tokens == 0 ? Json() : Json(static_cast<double>(tokens) / seconds)}};
}

void check_drafts(const Options& options, const Manifest& manifest) {
  if (!options.draft.empty() && manifest.max_verified < 2) throw Failure("--draft: the artifact verifies no drafts; export it with options.speculation");
}

std::unique_ptr<Drafts> drafts_of(const Options& options, const Session& session) {
  if (options.draft.empty()) return nullptr;
  const Manifest& manifest = session.manifest();
  check_drafts(options, manifest);
  if (options.draft == "lookup") return std::make_unique<Drafts>(std::make_unique<Lookup>());
  if (!options.load.empty()) throw Failure("--draft ARTIFACT cannot go on from --load-state: the smaller model has not seen it");
  return std::make_unique<Drafts>(std::make_unique<SmallerModel>(read_manifest(options.draft), manifest.vocab, options.threads));
}

int run_generate(const Options& options, Session& session, Json report) {
  if (options.tokens.empty()) throw Failure("generate needs --tokens or --tokens-file");
  const std::vector<int64_t> stop = options.stop.value_or(session.manifest().stop_tokens);
  std::vector<int64_t> seen;
  if (!options.load.empty()) seen = load_state(options.load, session);
  Sampler sampler(options.sampling);
  std::unique_ptr<Drafts> drafts = drafts_of(options, session);
  auto started = Clock::now();
  const float* logits = session.feed(options.tokens);
  report["prefill"] = rate(options.tokens.size(), seconds_since(started));
  seen.insert(seen.end(), options.tokens.begin(), options.tokens.end());
  started = Clock::now();
  const Generated made = generate(session, logits, seen, stop, options.max_new.value_or(64), sampler, drafts.get(), [](int64_t) {});
  report["decode"] = rate(made.fed, seconds_since(started));
  if (!options.save.empty()) save_state(options.save, session, seen, options.force);
  if (drafts) report["draft"] = {{"drafted", drafts->drafted()}, {"accepted", drafts->accepted()}};
  report["tokens"] = made.tokens;
  report["stopped"] = made.stopped;
  report["position"] = session.position();
  report["peak_bytes"] = peak_bytes();
  std::printf("%s\n", report.dump().c_str());
  return 0;
}

int golden(const Options& options, Session& session, Json report) {
  const GoldenReport replayed = replay(options.golden, session);
  Json cases = Json::array();
  for (const GoldenCase& each : replayed.cases) {
    // JSON has no NaN: the error is then null
    cases.push_back({{"steps", each.steps}, {"same", each.same}, {"wrong", each.wrong}, {"error", each.error}, {"seconds", each.seconds}, {"passed", each.passed}});
  }
  report["parity"] = {{"passed", replayed.passed}, {"limit", replayed.limit}, {"cases", cases}};
  report["peak_bytes"] = peak_bytes();
  std::printf("%s\n", report.dump().c_str());
  return replayed.passed ? 0 : kCheckFailed;
}

int run_chat(const Options& options) {
  if (!options.load.empty() || !options.save.empty() || !options.tokens.empty()) throw Failure("chat takes no tokens and no state; see lfm2_runner --help");
  if (!options.draft.empty() && options.draft != "lookup") throw Failure("chat takes --draft lookup alone");
  const Manifest manifest = read_manifest(options.artifact);
  check_drafts(options, manifest);
  TextProcess text(options.artifact);  // before there are threads and weights
  start_executorch();
  Session session(manifest, options.threads);
  ChatOptions wished{options.system, options.sampling, options.stop.value_or(text.stop_tokens()), options.max_new.value_or(256), options.forget, !options.draft.empty()};
  chat(session, text, wished);
  return 0;
}

int run(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  const Options options = parse(count, words);
  if (options.command == "text") {
    TextProcess text(options.artifact);
    serve_text(text);
    return 0;
  }
  if (options.command == "chat") return run_chat(options);
  const uint64_t baseline = resident_bytes();
  const auto started = Clock::now();
  start_executorch();
  Session session(read_manifest(options.artifact), options.threads);
  Json report = facts(session, seconds_since(started), baseline);
  if (options.command == "serve") {
    serve(session, report.dump() + "\n");
    return 0;
  }
  return options.command == "golden" ? golden(options, session, report) : run_generate(options, session, report);
}

}  // namespace
}  // namespace lfm2

int main(int count, char** words) {
  int code = lfm2::kMisuse;
  try {
    code = lfm2::run(count, words);
  } catch (const std::exception& error) {  // std::bad_alloc among them
    std::fprintf(stderr, "lfm2_runner: %s\n", lfm2::one_line(error.what()).c_str());
  }
  std::fflush(stdout);
  return code;
}

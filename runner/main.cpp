// lfm2_runner: an explicit-state .pte of lfm2-export, run by ExecuTorch's C++ libraries alone. One JSON line on stdout, or
// in a chat the replies; errors are one line on stderr. Exit codes: 0 done, 1 a golden case failed, 2 misuse or a file
// that cannot be trusted.
#include <chrono>
#include <cstdio>
#include <optional>

#include "artifact_files.h"
#include "chat.h"
#include "failure.h"
#include "files.h"
#include "generation.h"
#include "golden.h"
#include "json_fields.h"
#include "memory.h"
#include "open_drafts.h"
#include "options.h"
#include "sampler.h"
#include "serve.h"
#include "session.h"
#include "state_file.h"
#include "text_process.h"

namespace lfm2 {
namespace {

constexpr uint64_t kMostGolden = 64 << 20;  // bytes

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Json facts(const Session& session, double load_seconds, uint64_t baseline) {
  return {{"runtime", "executorch " LFM2_EXECUTORCH_VERSION}, {"window", session.manifest().window}, {"vocab", session.manifest().vocab},
          {"threads", session.threads()}, {"load_seconds", load_seconds}, {"baseline_bytes", baseline}};
}

Json rate(size_t tokens, double seconds) {
  return {{"tokens", tokens}, {"seconds", seconds}, {"tokens_per_second", tokens == 0 ? Json() : Json(static_cast<double>(tokens) / seconds)}};
}

int run_generate(const Options& options, Session& session, Json report) {
  if (options.tokens.empty()) throw Failure("generate needs --tokens or --tokens-file");
  const std::vector<int64_t> stop = options.stop.value_or(session.manifest().stop_tokens);
  std::vector<int64_t> seen;
  if (!options.load.empty()) seen = load_state(options.load, session).tokens;
  Sampler sampler(options.sampling);
  const std::unique_ptr<Source> source = draft_source(options.draft, session.manifest(), options.artifact, options.threads);
  std::optional<Drafts> drafts;
  if (source) drafts.emplace(*source);
  auto started = Clock::now();
  const float* logits = session.feed(options.tokens);
  report["prefill"] = rate(options.tokens.size(), seconds_since(started));
  seen.insert(seen.end(), options.tokens.begin(), options.tokens.end());
  started = Clock::now();
  const Generated made = generate(session, logits, seen, stop, options.max_new.value_or(64), sampler, drafts ? &*drafts : nullptr, [](int64_t) {});
  report["decode"] = rate(made.fed, seconds_since(started));
  if (!options.save.empty()) save_state(options.save, session, {seen, OrderedJson::array(), nullptr}, options.force);
  if (drafts) report["draft"] = {{"drafted", drafts->counts().drafted}, {"accepted", drafts->counts().accepted}};
  report["tokens"] = made.tokens;
  report["stopped"] = made.stopped;
  report["position"] = session.position();
  report["peak_bytes"] = peak_bytes();
  std::printf("%s\n", report.dump().c_str());
  return 0;
}

int run_golden(const Options& options, const ArtifactFiles& artifact, Session& session, Json report) {
  const bool own = options.golden.empty();
  const GoldenReport replayed = own ? replay(artifact.read(kGolden, kMostGolden), artifact.where(kGolden), session)
                                    : replay(read_file(options.golden, kMostGolden), options.golden, session);
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

int run_chat(const Options& options, const ArtifactFiles& artifact) {
  if (!options.tokens.empty()) throw Failure("chat takes no tokens; see lfm2_runner --help");
  if (!options.load.empty() && !options.system.empty()) throw Failure("--load-state brings its own system prompt; leave out --system");
  if (!options.save.empty()) check_free(options.save, options.force);  // said now, not after the talk
  const Manifest manifest = read_manifest(artifact);
  TextProcess text(artifact);  // before there are threads and weights
  start_executorch();
  const std::unique_ptr<Source> source = draft_source(options.draft, manifest, options.artifact, options.threads);
  Session session(artifact, manifest, options.threads);
  chat(session, text, {options.system, options.sampling, options.stop.value_or(text.stop_tokens()), options.max_new.value_or(256), options.forget,
                       source.get(), options.load, options.save, options.force});
  return 0;
}

int run(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  const Options options = parse_options(count, words);
  const uint64_t baseline = resident_bytes();
  const auto started = Clock::now();
  const std::unique_ptr<ArtifactFiles> artifact = open_artifact(options.artifact);
  if (options.command == "text") {
    TextProcess text(*artifact);
    serve_text(text);
    return 0;
  }
  if (options.command == "chat") return run_chat(options, *artifact);
  start_executorch();
  Session session(*artifact, read_manifest(*artifact), options.threads);
  Json report = facts(session, seconds_since(started), baseline);
  if (options.command == "serve") {
    serve(session, report.dump() + "\n");
    return 0;
  }
  return options.command == "golden" ? run_golden(options, *artifact, session, report) : run_generate(options, session, report);
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

#include "golden.h"

#include <chrono>
#include <cmath>

#include "failure.h"
#include "json_fields.h"
#include "sampler.h"

namespace lfm2 {
namespace {

struct Step {
  std::vector<int64_t> top;  // best first
  std::vector<double> logits;
  double scale = 0;  // the step's largest magnitude
};

Step read_step(const Json& value, int64_t vocab, const std::string& where) {
  Step step;
  step.top = token_field(value, "top", vocab, where);
  for (const Json& logit : list_field(value, "logits", where)) {
    if (!logit.is_number()) throw Failure(where + ": logits: expected numbers");
    step.logits.push_back(logit.get<double>());
  }
  step.scale = real_field(value, "scale", where);
  if (step.top.size() < 2 || step.top.size() != step.logits.size() || !(step.scale > 0)) {
    throw Failure(where + ": expected at least two tokens, as many logits and a scale above 0");
  }
  return step;
}

void compare(const Step& step, const float* logits, int64_t vocab, double limit, GoldenCase& result) {
  for (size_t i = 0; i < step.top.size(); ++i) {
    const double error = std::fabs(static_cast<double>(logits[step.top[i]]) - step.logits[i]) / step.scale;
    result.error = error <= result.error ? result.error : error;  // this way round a NaN stays
  }
  const double margin = (step.logits[0] - step.logits[1]) / step.scale;
  if (greedy(logits, vocab) == step.top[0]) ++result.same;
  else if (margin > limit) ++result.wrong;
  ++result.steps;
}

}  // namespace

GoldenReport replay(const std::string& text, const std::string& name, Session& session) {
  const Json document = parse_json(text, name);
  const int64_t vocab = session.manifest().vocab;
  GoldenReport report;
  report.limit = real_field(document, "max_error", name);
  if (!(report.limit > 0 && report.limit < 1)) throw Failure(name + ": max_error: expected a share between 0 and 1");
  for (const Json& entry : list_field(document, "cases", name)) {
    const std::string where = name + ": case " + std::to_string(report.cases.size() + 1);
    std::vector<int64_t> feed = token_field(entry, "prompt", vocab, where);
    const Json& steps = list_field(entry, "steps", where);
    if (feed.empty() || steps.empty()) throw Failure(where + ": without a prompt or without steps");
    const auto started = std::chrono::steady_clock::now();
    GoldenCase result;
    session.reset();
    for (const Json& value : steps) {
      const Step step = read_step(value, vocab, where);
      compare(step, session.feed(feed), vocab, report.limit, result);
      feed = {step.top[0]};
    }
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    result.passed = result.wrong == 0 && result.error <= report.limit;
    report.cases.push_back(result);
  }
  if (report.cases.empty()) throw Failure(name + ": without cases nothing would be proven");
  report.passed = true;
  for (const GoldenCase& result : report.cases) report.passed = report.passed && result.passed;
  return report;
}

}  // namespace lfm2

#include "chat_template.h"

#include <common/jinja/lexer.h>
#include <common/jinja/parser.h>
#include <common/jinja/runtime.h>
#include <common/jinja/value.h>

#include "../failure.h"

namespace lfm2 {
namespace {

constexpr size_t kLongest = 4 << 20;  // bytes of one prompt

// The engine's errors may go on with a few lines of the template.
std::string first_line(const std::string& text) {
  const size_t start = text.find_first_not_of('\n');
  return start == std::string::npos ? "no reason given" : text.substr(start, text.find('\n', start) - start);
}

}  // namespace

ChatTemplate::ChatTemplate(const std::string& source, const std::string& where) : where_(where) {
  try {
    const jinja::lexer_result tokens = jinja::lexer().tokenize(source);
    program_ = std::make_unique<jinja::program>(jinja::parse_from_tokens(tokens));
  } catch (const std::exception& error) {
    throw Failure(where_ + ": the chat template fails: " + first_line(error.what()));
  }
}

ChatTemplate::~ChatTemplate() = default;

std::string ChatTemplate::render(const nlohmann::ordered_json& values) const {
  std::string prompt;
  try {
    jinja::context context;  // without the source, which would come before the reason in its errors
    jinja::global_from_json(context, values, /*mark_input=*/false);
    const jinja::value parts = jinja::runtime(context).execute(*program_);
    prompt = jinja::runtime::gather_string_parts(parts)->as_string().str();
  } catch (const std::exception& error) {
    throw Failure(where_ + ": the chat template refuses this conversation or fails: " + first_line(error.what()));
  }
  if (prompt.size() > kLongest) throw Failure(where_ + ": the chat template renders more than " + std::to_string(kLongest) + " bytes");
  return prompt;
}

}  // namespace lfm2

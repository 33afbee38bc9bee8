// Messages to prompt: a checkpoint's chat template, rendered by llama.cpp's Jinja engine.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace jinja {
struct program;
}

namespace lfm2 {

class ChatTemplate {
 public:
  // `where` names the file in errors. Failure when it does not compile.
  ChatTemplate(const std::string& source, const std::string& where);
  ~ChatTemplate();

  // The prompt for these variables, whose keys keep their order (a tool is spelled as it was given). Failure when the template refuses or fails.
  std::string render(const nlohmann::ordered_json& values) const;

 private:
  std::string where_;
  std::unique_ptr<jinja::program> program_;
};

}  // namespace lfm2

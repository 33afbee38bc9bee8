// What an artifact folder says about text, beside its tokenizer: as lfm2_export/checkpoint/tokenizer.py reads it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../json_fields.h"
#include "chat_tokenizer.h"

namespace lfm2 {

struct TextFolder {
  explicit TextFolder(const std::string& folder);  // Failure, in one line, for what is missing or malformed

  ChatTokenizer tokenizer;
  Json special;                       // the variables a template knows the special tokens by
  std::vector<int64_t> stop_tokens;  // where a reply ends
  std::string source, where;          // of the chat template

 private:
  TextFolder(const std::string& folder, const Json& config);
};

}  // namespace lfm2

// What an artifact's files say about text, its tokenizer first: as lfm2_export/checkpoint/tokenizer.py reads them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../json_fields.h"
#include "chat_tokenizer.h"
#include "text_files.h"

namespace lfm2 {

struct ArtifactText {
  explicit ArtifactText(const TextFiles& files);  // Failure, in one line, for what is missing or malformed

  ChatTokenizer tokenizer;
  Json special;                       // the variables a template knows the special tokens by
  std::vector<int64_t> stop_tokens;  // where a reply ends
  std::string source, where;          // of the chat template

 private:
  ArtifactText(const TextFiles& files, const Json& config);
};

}  // namespace lfm2

// Text to token ids and back, by ExecuTorch's tokenizer library, for the tokenizers that it was compared with.
#pragma once

#include <pytorch/tokenizers/hf_tokenizer.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "../json_fields.h"
#include "text_files.h"

namespace lfm2 {

class ChatTokenizer {
 public:
  // Failure for a tokenizer.json that is malformed, has ids the model does not have, or is of a kind in which
  // the library was not found equal to Hugging Face's, token for token; the message names what.
  ChatTokenizer(const TextFile& file, int64_t vocab);

  // Failure where the library fails or loses text.
  std::vector<int64_t> encode(const std::string& text) const;

  // Bytes; none for an id without a token.
  std::string bytes(int64_t token) const;

  std::string name(int64_t token) const;  // as it is spelled in text; empty for none
  int64_t id(const std::string& added) const;  // of an added token; -1 for none

 private:
  std::string where_;
  tokenizers::HFTokenizer library_;
  std::vector<bool> known_;                              // by id
  std::unordered_map<std::string, int64_t> added_;  // special tokens and others that are cut out first
};

// Bytes as text: what forms no character becomes U+FFFD.
std::string as_text(const std::string& bytes);

// A reply, token by token, to text; a piece appears once its bytes form whole characters.
class TextStream {
 public:
  std::string step(const std::string& bytes);

 private:
  std::string pending_;
};

}  // namespace lfm2

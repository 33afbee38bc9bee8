// Tokenizer and chat template of an artifact, neither of them trusted: in a process of its own, which the system ends when
// it takes too long or too much memory, and whose crash is an error in one line here. It is given their bytes, opens none
// of the artifact's files.
//
// What it answers (runner/text/server.cpp), one JSON document a line:
//   {"messages": [...], "tools": [...]}  the prompt for these messages: {"prompt": "...", "tokens": [...]}
//   {"text": "..."}                      {"tokens": [...]}
//   {"tokens": [...]}                    {"text": "..."}
//   {"next": 7}                          what one more token of a reply adds: {"text": "..."}, empty while a character is
//                                        incomplete; {"next": null} begins another reply
// and {"error": "..."} where it refuses.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "artifact_files.h"
#include "failure.h"
#include "json_fields.h"

namespace lfm2 {

// The template or the tokenizer refuses this conversation; another may pass.
struct TextRefused : Failure {
  using Failure::Failure;
};

class TextProcess {
 public:
  // Before the program starts threads. Failure where the runner was built without the libraries, or where the artifact
  // has no tokenizer or template that they take.
  explicit TextProcess(const ArtifactFiles& artifact);
  ~TextProcess();
  TextProcess(const TextProcess&) = delete;
  TextProcess& operator=(const TextProcess&) = delete;

  // TextRefused for an error that the process answers, Failure once it is gone.
  Json ask(const OrderedJson& request);

  // The answer as it is, errors too.
  std::string ask_line(const std::string& request);

  const std::vector<int64_t>& stop_tokens() const { return stop_tokens_; }

 private:
  std::string read_line();

  std::string where_;
  pid_t process_ = -1;
  int channel_ = -1;
  std::string received_;
  std::vector<int64_t> stop_tokens_;  // where a reply ends, by config, generation config or tokenizer
};

}  // namespace lfm2

// `lfm2_runner chat`: lines of text from stdin, replies to stdout as they come, everything else to stderr.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "drafts.h"
#include "sampler.h"
#include "session.h"
#include "text_process.h"

namespace lfm2 {

struct ChatOptions {
  std::string system;
  Sampling sampling;
  std::vector<int64_t> stop;
  int64_t max_new = 0;
  bool forget = false;
  Source* source = nullptr;  // of drafts
  std::string load, save;    // state files
  bool force = false;        // whether another file is replaced
};

// Until stdin ends. Failure for a state file that cannot be read, or at the end written.
void chat(Session& session, TextProcess& text, const ChatOptions& options);

// `lfm2_runner text`: requests and answers of text_process.h, a line each, for another process.
void serve_text(TextProcess& text);

}  // namespace lfm2

// The command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sampler.h"

namespace lfm2 {

extern const char* const kUsage;

struct Options {
  std::string command, artifact, golden;  // golden: empty for the artifact's own
  std::vector<int64_t> tokens;
  std::optional<std::vector<int64_t>> stop;
  std::optional<int64_t> max_new;
  uint32_t threads = 0;  // 0: as many as ExecuTorch thinks fit
  Sampling sampling;
  std::string draft, load, save, system;
  bool forget = false;
  bool force = false;
};

// Failure, in one line, for what is no command line of ours.
Options parse_options(int count, char** words);

}  // namespace lfm2

// Replaying golden cases: what the artifact answered where it was proven, against what it answers here.
#pragma once

#include <string>
#include <vector>

#include "session.h"

namespace lfm2 {

struct GoldenCase {
  size_t steps = 0;
  size_t same = 0;    // steps whose most likely token is the golden one
  size_t wrong = 0;   // steps where it is not, though the golden choice was no close call
  double error = 0;   // largest, relative to the largest logit of its step
  double seconds = 0;
  bool passed = false;
};

struct GoldenReport {
  double limit = 0;
  std::vector<GoldenCase> cases;
  bool passed = false;
};

// Reads a document of lfm2_export/bundle/golden.py, whose name begins every message, and feeds each case its own tokens.
// Failure for a document that is malformed, empty or not about this vocabulary and window.
GoldenReport replay(const std::string& text, const std::string& name, Session& session);

}  // namespace lfm2

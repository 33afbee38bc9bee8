// `--draft`: where the guesses come from, opened and held against the artifact that they are for; as
// lfm2_export/chat/open_drafts.py.
#pragma once

#include <memory>
#include <string>

#include "drafts.h"

namespace lfm2 {

// "lookup", or the artifact of a smaller model; none where nothing is `given`. Failure where `wanted`, of the artifact at
// `path`, verifies no drafts, or the other model has another vocabulary or verifies none itself.
std::unique_ptr<Source> draft_source(const std::string& given, const Manifest& wanted, const std::string& path, uint32_t threads);

}  // namespace lfm2

// A conversation's state as one file, in the format of lfm2_export/chat/saved_state.py: either reads what the other wrote.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "session.h"

namespace lfm2 {

// Writes the session's state and the tokens it has seen, whole or not at all. Failure if the file exists and `force`
// is not set, or if the system refuses.
void save_state(const std::string& path, Session& session, const std::vector<int64_t>& seen, bool force);

// Puts a saved state into the session and returns the tokens behind it. Failure, and the session as it was, for a file
// that is missing, too large, damaged, of a later format, or of another artifact or window.
std::vector<int64_t> load_state(const std::string& path, Session& session);

}  // namespace lfm2

// A conversation's state as one file, in the format of lfm2_export/chat/saved_state.py: either reads what the other wrote.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json_fields.h"
#include "session.h"

namespace lfm2 {

// What led to a state: the tokens, and a chat's messages and tools where there is one.
struct Said {
  std::vector<int64_t> tokens;
  OrderedJson messages = OrderedJson::array();
  OrderedJson tools;  // a list or null
};

// Writes the session's state and what led to it, whole or not at all; the same conversation gives Python's bytes. Failure
// if the file exists and `force` is not set, if it would be too large to be read back, or if the system refuses.
void save_state(const std::string& path, Session& session, const Said& said, bool force);

// Puts a saved state into the session and returns what led to it. Failure, and the session as it was, for a file that is
// missing, too large, damaged, of a later format, or of another artifact or window.
Said load_state(const std::string& path, Session& session);

}  // namespace lfm2

// Every error that a file or a caller can cause, as one line that says what was wrong.
#pragma once

#include <cctype>
#include <stdexcept>
#include <string>

namespace lfm2 {

constexpr int kCheckFailed = 1;  // exit codes, as lfm2-export's
constexpr int kMisuse = 2;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// More tokens than the artifact's window holds.
struct WindowExceeded : Failure {
  using Failure::Failure;
};

// A file's name in a message: of any bytes, as printable ASCII between quotes.
inline std::string shown(const std::string& name) {
  std::string text = "'";
  for (const char letter : name.substr(0, 120)) text += letter >= ' ' && letter <= '~' ? letter : '?';
  return text + "'";
}

inline std::string one_line(std::string text) {
  for (char& letter : text) letter = std::iscntrl(static_cast<unsigned char>(letter)) ? '?' : letter;
  return text;
}

}  // namespace lfm2

// What text needs of an artifact: files by name, read by whoever starts the process of text_process.h.
#pragma once

#include <map>
#include <string>

namespace lfm2 {

struct TextFile {
  std::string where, data;  // how messages call it, and its bytes
};
using TextFiles = std::map<std::string, TextFile>;

}  // namespace lfm2

// The one way `lfm2-export bundle` writes an archive, and reading, which accepts nothing else: as
// lfm2_export/bundle/zip_format.py, which says why. Entries are stored, so a file's bytes lie in the archive as they are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lfm2 {

struct ZipEntry {
  std::string name;
  uint64_t size = 0;  // bytes
  uint32_t crc = 0;   // as stated: compared between the two headers, never with the content
  std::string_view content;
};

// The entries of an archive, in order. Failure, in one line that begins with `where`, for any byte outside their content
// that `bundle` would not have written: with that no data is prepended, trailing, hidden, overlapping or described twice.
std::vector<ZipEntry> read_entries(std::string_view archive, const std::string& where);

}  // namespace lfm2

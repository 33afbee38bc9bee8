// What this process holds in memory, and moving a model's weights onto huge pages. Linux only; elsewhere zeros.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace lfm2 {

uint64_t resident_bytes();  // now
uint64_t peak_bytes();      // at most, so far

// Remembers what memory there was, so that only what came since is moved. See lfm2_export/runtimes/_huge_pages.py.
class HugePages {
 public:
  HugePages();
  void adopt() const;  // blocks; a page that cannot be moved stays as it is

 private:
  std::vector<std::pair<uintptr_t, uintptr_t>> before_;
};

}  // namespace lfm2

#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace lfm2 {
namespace {

using Range = std::pair<uintptr_t, uintptr_t>;

constexpr uintptr_t kPage = 2 << 20;
constexpr int kMadviseCollapse = 25;  // MADV_COLLAPSE of asm-generic/mman-common.h, since Linux 6.1

uint64_t status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::strtoull(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
  }
  return 0;
}

// Private writable memory behind no file, in order of address.
std::vector<Range> anonymous() {
  std::vector<Range> ranges;
  std::ifstream file("/proc/self/maps");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string addresses, permissions, offset, device, inode, name;
    words >> addresses >> permissions >> offset >> device >> inode >> name;
    const size_t dash = addresses.find('-');
    if (dash == std::string::npos || permissions != "rw-p" || inode != "0" || !(name.empty() || name == "[heap]")) continue;
    ranges.emplace_back(std::stoull(addresses.substr(0, dash), nullptr, 16), std::stoull(addresses.substr(dash + 1), nullptr, 16));
  }
  return ranges;
}

void collapse(uintptr_t start, uintptr_t end) {
  start = (start + kPage - 1) / kPage * kPage;
  end = end / kPage * kPage;
  if (start < end) ::madvise(reinterpret_cast<void*>(start), end - start, kMadviseCollapse);
}

}  // namespace

uint64_t resident_bytes() { return status("VmRSS"); }
uint64_t peak_bytes() { return status("VmHWM"); }

HugePages::HugePages() : before_(anonymous()) {}

void HugePages::adopt() const {
  for (auto [start, end] : anonymous()) {
    for (const auto& [low, high] : before_) {
      if (high <= start || low >= end) continue;
      if (start < low) collapse(start, low);
      start = std::max(start, high);
    }
    if (start < end) collapse(start, end);
  }
}

}  // namespace lfm2

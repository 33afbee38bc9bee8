// Files that nobody has vouched for yet, and files that appear whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace lfm2 {

// The whole of a regular file of at most `most` bytes, not through a link. Failure otherwise.
std::string read_file(const std::string& path, uint64_t most);

// Writes through a temporary name beside it. Failure if it exists and `force` is not set, or if the system refuses.
void write_file(const std::string& path, const std::string& data, bool force);

// A file's bytes in memory, mapped: what was checked is what is read later, even if the name is given to another file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // Failure if it cannot be mapped
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lfm2

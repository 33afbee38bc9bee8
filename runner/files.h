// Files that nobody has vouched for yet, and files that appear whole or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lfm2 {

// The whole of a regular file of at most `most` bytes, not through a link. Failure otherwise.
std::string read_file(const std::string& path, uint64_t most);

// Failure if there is something already and `force` is not set.
void check_free(const std::string& path, bool force);

// Writes through a temporary name beside it. Failure as `check_free`'s, or if the system refuses.
void write_file(const std::string& path, const std::string& data, bool force);

// A file's bytes in memory, mapped: what was checked is what is read later, even if the name is given to another file.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // Failure if it cannot be mapped
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

  // Gives back the memory that its pages take; they are read anew where they are needed again.
  void let_go() const;

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lfm2

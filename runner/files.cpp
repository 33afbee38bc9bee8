#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "failure.h"

namespace lfm2 {
namespace {

// An open descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return number_; }

 private:
  int number_;
};

[[noreturn]] void refuse(const std::string& path, const std::string& why) { throw Failure(path + ": " + why); }

uint64_t size_of_regular(int file, const std::string& path) {
  struct stat found {};
  if (file < 0 || ::fstat(file, &found) != 0) refuse(path, std::strerror(errno));
  if (!S_ISREG(found.st_mode)) refuse(path, "not a file");
  return static_cast<uint64_t>(found.st_size);
}

// O_NONBLOCK: opening a named pipe would wait for ever
int open_for_reading(const std::string& path) { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); }

}  // namespace

std::string read_file(const std::string& path, uint64_t most) {
  Descriptor file(open_for_reading(path));
  const uint64_t size = size_of_regular(file, path);
  if (size > most) refuse(path, std::to_string(size) + " bytes, at most " + std::to_string(most) + " are read");
  std::string data(size, '\0');
  for (size_t done = 0; done < size;) {
    const ssize_t count = ::read(file, data.data() + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) refuse(path, "cannot be read to its end");
    done += static_cast<size_t>(count);
  }
  return data;
}

void check_free(const std::string& path, bool force) {
  struct stat found {};
  if (!force && ::lstat(path.c_str(), &found) == 0) refuse(path, "exists already; --force replaces it");
}

void write_file(const std::string& path, const std::string& data, bool force) {
  check_free(path, force);
  const std::string temporary = path + "." + std::to_string(::getpid());
  std::FILE* file = std::fopen(temporary.c_str(), "wxb");
  if (file == nullptr) refuse(path, std::string("cannot be written: ") + std::strerror(errno));
  const bool written = std::fwrite(data.data(), 1, data.size(), file) == data.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string why = std::strerror(errno);
    std::remove(temporary.c_str());
    refuse(path, "cannot be written: " + why);
  }
}

MappedFile::MappedFile(const std::string& path) {
  Descriptor file(open_for_reading(path));
  size_ = static_cast<size_t>(size_of_regular(file, path));
  if (size_ == 0) refuse(path, "is empty");
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  if (mapped == MAP_FAILED) refuse(path, std::strerror(errno));
  data_ = mapped;
}

void MappedFile::let_go() const { ::madvise(data_, size_, MADV_DONTNEED); }

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace lfm2

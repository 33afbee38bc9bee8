#include "text_process.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "text/text_files.h"

namespace lfm2 {
namespace {

constexpr const char* kLibrary = "lfm2_text.so";
constexpr rlim_t kMemory = rlim_t{1} << 30;
constexpr size_t kMostLine = 64 << 20;
constexpr std::pair<const char*, uint64_t> kMost[] = {  // bytes of what is given to the process
    {kManifest, 16 << 20}, {"tokenizer.json", 64 << 20}, {"tokenizer_config.json", 16 << 20}, {"generation_config.json", 16 << 20}, {"chat_template.jinja", 1 << 20}};

// Beside the program.
std::string library_path() {
  char path[PATH_MAX] = {};
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof path - 1);
  const std::string program(path, length > 0 ? static_cast<size_t>(length) : 0);
  return program.substr(0, program.rfind('/') + 1) + kLibrary;
}

void limit(int resource, rlim_t size) {
  const rlimit value = {size, size};
  ::setrlimit(static_cast<__rlimit_resource>(resource), &value);
}

TextFiles text_files(const ArtifactFiles& artifact) {
  TextFiles files;
  for (const auto& [name, most] : kMost) {
    const bool needed = std::strcmp(name, kManifest) == 0 || std::strcmp(name, "tokenizer.json") == 0;
    if (needed || artifact.has(name)) files[name] = {artifact.where(name), artifact.read(name, most)};
  }
  return files;
}

// The child's whole life; what the libraries print is for nobody.
[[noreturn]] void live(const std::string& library, const TextFiles& files, int channel) {
  const int nowhere = ::open("/dev/null", O_RDWR);
  for (const int stream : {0, 1, 2}) ::dup2(nowhere, stream);
  limit(RLIMIT_CORE, 0);
#ifndef __SANITIZE_ADDRESS__  // whose own memory is terabytes that are never touched
  limit(RLIMIT_AS, kMemory);
#endif
  using Serve = void (*)(const TextFiles*, int);
  void* opened = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  const auto serve = opened == nullptr ? nullptr : reinterpret_cast<Serve>(::dlsym(opened, "lfm2_text_serve"));
  if (serve == nullptr) {
    const char* why = ::dlerror();
    const std::string line = Json{{"error", std::string(kLibrary) + " does not load: " + (why == nullptr ? "" : why)}}.dump() + "\n";
    (void)!::write(channel, line.data(), line.size());
    ::_exit(1);
  }
  serve(&files, channel);
  ::_exit(0);
}

}  // namespace

TextProcess::TextProcess(const ArtifactFiles& artifact) : where_(artifact.where("tokenizer.json")) {
  const std::string library = library_path();
  if (::access(library.c_str(), R_OK) != 0) {
    throw Failure("this lfm2_runner was built without " + std::string(kLibrary) + ", which reads tokenizers and templates; make runner builds both");
  }
  const TextFiles files = text_files(artifact);
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw Failure(std::string("no socket: ") + std::strerror(errno));
  process_ = ::fork();
  if (process_ < 0) throw Failure(std::string("no process: ") + std::strerror(errno));
  if (process_ == 0) {
    ::close(ends[0]);
    live(library, files, ends[1]);
  }
  ::close(ends[1]);
  channel_ = ends[0];
  const Json hello = parse_json(read_line(), where_);
  if (hello.contains("error")) throw Failure(text_field(hello, "error", where_));
  stop_tokens_ = token_field(hello, "stop", INT64_MAX, where_);
}

TextProcess::~TextProcess() {
  if (channel_ >= 0) ::close(channel_);
  if (process_ > 0) ::waitpid(process_, nullptr, 0);
}

std::string TextProcess::read_line() {
  for (size_t end; (end = received_.find('\n')) == std::string::npos;) {
    char block[1 << 16];
    const ssize_t count = ::read(channel_, block, sizeof block);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0 || received_.size() > kMostLine) {
      throw Failure(where_ + ": tokenizer or chat template was stopped: it needs more than its time or memory, or breaks its library");
    }
    received_.append(block, static_cast<size_t>(count));
  }
  const size_t end = received_.find('\n');
  const std::string line = received_.substr(0, end);
  received_.erase(0, end + 1);
  return line;
}

std::string TextProcess::ask_line(const std::string& request) {
  const std::string line = request + "\n";
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t count = ::send(channel_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;  // read_line says that it is gone
    sent += static_cast<size_t>(count);
  }
  return read_line();
}

Json TextProcess::ask(const OrderedJson& request) {
  std::string line;
  try {
    line = request.dump();
  } catch (const OrderedJson::type_error&) {
    throw TextRefused("not UTF-8 text");
  }
  const Json answer = parse_json(ask_line(line), where_);
  if (answer.contains("error")) throw TextRefused(text_field(answer, "error", where_));
  return answer;
}

}  // namespace lfm2

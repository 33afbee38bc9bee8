// The process behind text_process.h: a line of JSON is a question, a line is the answer. It is loaded as a library
// beside the runner, so that a runner without it is whole.
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "../failure.h"
#include "../json_fields.h"
#include "artifact_text.h"
#include "chat_template.h"
#include "chat_tokenizer.h"
#include "text_files.h"

namespace lfm2 {
namespace {

constexpr time_t kSeconds = 20;  // of processor time for one answer; a real one takes a thousandth, and an emulator counts

// The system ends the process after so many; 0 takes the limit back.
void limit_time(time_t seconds) {
  const itimerval value = {{0, 0}, {seconds, 0}};
  ::setitimer(ITIMER_PROF, &value, nullptr);
}

class Server {
 public:
  explicit Server(const TextFiles& files) : text_(files), template_(text_.source, text_.where) {}

  Json hello() const { return {{"stop", text_.stop_tokens}}; }

  Json answer(const std::string& line) {
    const Json request = parse_json(line, "request");
    if (request.contains("messages")) return prompt(OrderedJson::parse(line));
    if (request.contains("text")) return {{"tokens", text_.tokenizer.encode(text_field(request, "text", "request"))}};
    if (request.contains("tokens")) return {{"text", decoded(request)}};
    const Json& next = field(request, "next", "request");
    if (next.is_null()) {
      stream_ = TextStream();
      return Json::object();
    }
    return {{"text", stream_.step(text_.tokenizer.bytes(whole(next, 0, INT64_MAX, "next")))}};
  }

 private:
  Json prompt(const OrderedJson& request) const {
    OrderedJson values = text_.special;
    values["messages"] = request.at("messages");
    const auto tools = request.find("tools");
    values["tools"] = tools == request.end() || tools->empty() ? OrderedJson() : *tools;
    values["add_generation_prompt"] = true;
    const std::string text = template_.render(values);
    return {{"prompt", text}, {"tokens", text_.tokenizer.encode(text)}};
  }

  std::string decoded(const Json& request) const {
    std::string bytes;
    for (const int64_t token : token_field(request, "tokens", INT64_MAX, "request")) bytes += text_.tokenizer.bytes(token);
    return as_text(bytes);
  }

  ArtifactText text_;
  ChatTemplate template_;
  TextStream stream_;
};

// False when the other end is gone.
bool send_line(int channel, const std::string& text) {
  const std::string line = text + "\n";
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t count = ::send(channel, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (count <= 0) return false;
    sent += static_cast<size_t>(count);
  }
  return true;
}

bool read_line(int channel, std::string& received, std::string& line) {
  size_t end;
  while ((end = received.find('\n')) == std::string::npos) {
    char block[1 << 16];
    const ssize_t count = ::read(channel, block, sizeof block);
    if (count <= 0) return false;
    received.append(block, static_cast<size_t>(count));
  }
  line = received.substr(0, end);
  received.erase(0, end + 1);
  return true;
}

template <typename Work>
std::string answered(Work work) {
  limit_time(kSeconds);
  std::string line;
  try {
    line = Json(work()).dump();
  } catch (const Failure& failure) {
    line = Json{{"error", failure.what()}}.dump(-1, ' ', false, Json::error_handler_t::replace);
  } catch (const std::exception& error) {  // of a library
    line = Json{{"error", std::string("tokenizer or chat template: ") + error.what()}}.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  limit_time(0);
  return line;
}

}  // namespace
}  // namespace lfm2

extern "C" void lfm2_text_serve(const lfm2::TextFiles* files, int channel) {
  using namespace lfm2;
  std::unique_ptr<Server> server;
  const std::string hello = answered([&] {
    server = std::make_unique<Server>(*files);
    return server->hello();
  });
  std::string received, line;
  for (bool open = send_line(channel, hello); open && server != nullptr && read_line(channel, received, line);) {
    open = send_line(channel, answered([&] { return server->answer(line); }));
  }
}

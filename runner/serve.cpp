#include "serve.h"

#include <cstdio>

#include "failure.h"
#include "json_fields.h"
#include "memory.h"

namespace lfm2 {
namespace {

constexpr size_t kMostLine = 64 << 20;

// False at the end of stdin.
bool read_line(std::string& line) {
  line.clear();
  for (int letter; (letter = std::getc(stdin)) != EOF;) {
    if (letter == '\n') return true;
    line += static_cast<char>(letter);
    if (line.size() > kMostLine) throw Failure("a request longer than " + std::to_string(kMostLine) + " bytes");
  }
  if (!line.empty()) throw Failure("stdin ended in the middle of a request");
  return false;
}

void write_bytes(const void* data, size_t size) {
  if (std::fwrite(data, 1, size, stdout) != size) throw Failure("stdout was closed");
}

void answer(Json message, Session& session) {
  message["position"] = session.position();
  const std::string line = message.dump() + "\n";
  write_bytes(line.data(), line.size());
}

size_t state_bytes(Session& session, int64_t position) {
  size_t bytes = 0;
  for (const StateTensor& tensor : session.state()) bytes += tensor.runs() * tensor.run_bytes(position);
  return bytes;
}

void send_state(Session& session) {
  answer({{"bytes", state_bytes(session, session.position())}}, session);
  for (const StateTensor& tensor : session.state()) {
    for (size_t run = 0; run < tensor.runs(); ++run) {
      write_bytes(tensor.data.get() + run * tensor.run_stride(), tensor.run_bytes(session.position()));
    }
  }
}

// The process ends where it cannot tell the bytes from the next request.
struct OutOfStep : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int64_t restored_position(Session& session, const Json& request) {
  try {
    const int64_t position = whole_field(request, "position", 0, session.manifest().window, "restore");
    const auto bytes = static_cast<size_t>(whole_field(request, "bytes", 0, INT64_MAX, "restore"));
    if (bytes == state_bytes(session, position)) return position;
  } catch (const Failure& failure) {
    throw OutOfStep(failure.what());
  }
  throw OutOfStep("restore: the bytes are not those of a state");
}

void restore(Session& session, const Json& request) {
  const int64_t position = restored_position(session, request);
  for (StateTensor& tensor : session.state()) {
    for (size_t run = 0; run < tensor.runs(); ++run) {
      const size_t size = tensor.run_bytes(position);
      if (std::fread(tensor.data.get() + run * tensor.run_stride(), 1, size, stdin) != size) {
        throw OutOfStep("stdin ended in the middle of a state");
      }
    }
  }
  session.stand_at(position);
  answer(Json::object(), session);
}

void obey(const Json& request, Session& session) {
  const std::string wish = text_field(request, "do", "request");
  if (wish == "feed") {
    const float* logits = session.feed(token_field(request, "tokens", session.manifest().vocab, "feed"));
    const size_t bytes = static_cast<size_t>(session.manifest().vocab) * sizeof(float);
    answer({{"bytes", bytes}}, session);
    write_bytes(logits, bytes);
  } else if (wish == "verify") {
    const std::vector<int64_t> tokens = token_field(request, "tokens", session.manifest().vocab, "verify");
    const float* logits = session.verify(tokens);
    const size_t bytes = tokens.size() * static_cast<size_t>(session.manifest().vocab) * sizeof(float);
    answer({{"bytes", bytes}}, session);
    write_bytes(logits, bytes);
  } else if (wish == "keep") {
    session.keep(whole_field(request, "count", 0, INT64_MAX, "keep"));
    answer(Json::object(), session);
  } else if (wish == "reset") {
    session.reset();
    answer(Json::object(), session);
  } else if (wish == "state") {
    send_state(session);
  } else if (wish == "restore") {
    restore(session, request);
  } else if (wish == "memory") {
    session.settle();
    answer({{"resident_bytes", resident_bytes()}, {"peak_bytes", peak_bytes()}}, session);
  } else {
    throw Failure("no request '" + wish.substr(0, 40) + "'");
  }
}

}  // namespace

void serve(Session& session, const std::string& hello) {
  write_bytes(hello.data(), hello.size());
  std::fflush(stdout);
  for (std::string line; read_line(line);) {
    try {
      obey(parse_json(line, "request"), session);
    } catch (const WindowExceeded& failure) {
      answer({{"error", failure.what()}, {"window", true}}, session);
    } catch (const Failure& failure) {
      answer({{"error", failure.what()}}, session);
    }
    std::fflush(stdout);
  }
}

}  // namespace lfm2

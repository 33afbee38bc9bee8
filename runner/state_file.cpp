#include "state_file.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <executorch/runtime/core/exec_aten/exec_aten.h>

#include "checksum.h"
#include "failure.h"
#include "files.h"

namespace lfm2 {
namespace {

constexpr int64_t kFormat = 1;
constexpr const char* kKey = "lfm2_export_state";
constexpr const char* kMetadata = "__metadata__";
constexpr uint64_t kHeaderBytes = 1 << 20, kHeaderBytesPerToken = 256;  // as saved_state.py allows

// A tensor as the file has it: fp32, conv states [1, hidden, L-1], caches [1, kv_heads, position, head_dim].
std::vector<int64_t> stored_shape(const StateTensor& tensor, int64_t position) {
  const auto& shape = tensor.spec.shape;
  if (tensor.cache) return {1, shape[0], position, shape[3]};
  return {1, shape[2], shape[1]};
}

uint64_t stored_bytes(const StateTensor& tensor, int64_t position) {
  uint64_t bytes = sizeof(float);
  for (const int64_t size : stored_shape(tensor, position)) bytes *= static_cast<uint64_t>(size);
  return bytes;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

template <typename T>
void convert(const void* from, void* to, size_t count, bool reading) {
  for (size_t i = 0; i < count; ++i) {
    T narrow;
    float wide;
    if (reading) {
      std::memcpy(&wide, static_cast<const char*>(from) + i * sizeof wide, sizeof wide);
      narrow = static_cast<T>(wide);
      std::memcpy(static_cast<char*>(to) + i * sizeof narrow, &narrow, sizeof narrow);
    } else {
      std::memcpy(&narrow, static_cast<const char*>(from) + i * sizeof narrow, sizeof narrow);
      wide = static_cast<float>(narrow);
      std::memcpy(static_cast<char*>(to) + i * sizeof wide, &wide, sizeof wide);
    }
  }
}

// Between the program's memory and the file's fp32; `reading` is from the file.
void copy_floats(const std::string& dtype, const void* from, void* to, size_t count, bool reading) {
  if (dtype == "float32") convert<float>(from, to, count, reading);
  else if (dtype == "float16") convert<executorch::aten::Half>(from, to, count, reading);
  else if (dtype == "bfloat16") convert<executorch::aten::BFloat16>(from, to, count, reading);
  else throw Failure("a state of dtype '" + dtype + "'");
}

// Moves one tensor between the program's layout and the file's, as many columns as there are tokens.
void transfer(StateTensor& tensor, int64_t position, char* stored, bool reading) {
  const size_t width = bytes_of(tensor.spec.dtype);
  const auto copy = [&](char* native, char* file, size_t count) {
    copy_floats(tensor.spec.dtype, reading ? file : native, reading ? native : file, count, reading);
  };
  if (tensor.cache) {
    const size_t count = tensor.run_bytes(position) / width;
    for (size_t head = 0; head < tensor.runs(); ++head) {
      copy(tensor.data.get() + head * tensor.run_stride(), stored + head * count * sizeof(float), count);
    }
    return;
  }
  const auto columns = static_cast<size_t>(tensor.spec.shape[1]), hidden = static_cast<size_t>(tensor.spec.shape[2]);
  for (size_t column = 0; column < columns; ++column) {
    for (size_t row = 0; row < hidden; ++row) {
      copy(tensor.data.get() + (column * hidden + row) * width, stored + (row * columns + column) * sizeof(float), 1);
    }
  }
}

// Over the header as it is spelled and every tensor's name, dtype, shape and bytes, by name.
std::string checksum(const std::string& text, const std::map<std::string, std::pair<std::vector<int64_t>, std::string_view>>& tensors) {
  Sha256 sha;
  sha.update(Json(text).dump(-1, ' ', /*ensure_ascii=*/true));
  for (const auto& [name, tensor] : tensors) {
    sha.update("[\"" + name + "\", \"float32\", " + shape_text(tensor.first) + "]");
    sha.update(tensor.second);
  }
  return sha.hex();
}

using Views = std::map<std::string, std::pair<std::vector<int64_t>, std::string_view>>;

uint64_t most_bytes(Session& session) {
  const int64_t window = session.manifest().window;
  uint64_t bytes = kHeaderBytes + kHeaderBytesPerToken * static_cast<uint64_t>(window);
  for (const StateTensor& tensor : session.state()) bytes += stored_bytes(tensor, window);
  return bytes;
}

// Splits a safetensors file into its metadata text and the tensors that `session` has, all of them and no other.
struct Parsed {
  std::string metadata;
  Json tensors;
  std::string_view body;
};

Parsed split(const std::string& path, const std::string& data) {
  uint64_t length = 0;
  if (data.size() < sizeof length) throw Failure(path + ": not a saved state: no header");
  for (int byte = 7; byte >= 0; --byte) length = length << 8 | static_cast<unsigned char>(data[static_cast<size_t>(byte)]);
  if (length > data.size() - sizeof length) throw Failure(path + ": not a saved state: its header is cut off");
  Parsed parsed;
  parsed.tensors = parse_json(data.substr(sizeof length, length), path);
  parsed.metadata = text_field(field(parsed.tensors, kMetadata, path), kKey, path);
  parsed.tensors.erase(kMetadata);
  parsed.body = std::string_view(data).substr(sizeof length + length);
  return parsed;
}

// Of the file's tensors, each where the session wants one.
Views views(const std::string& path, const Parsed& parsed, Session& session, int64_t position) {
  if (parsed.tensors.size() != session.state().size()) throw Failure(path + ": holds other tensors than this artifact's state");
  Views found;
  uint64_t total = 0;
  for (const StateTensor& tensor : session.state()) {
    const std::string& name = tensor.spec.name;
    const std::string where = path + ": " + name;
    const Json& entry = field(parsed.tensors, name.c_str(), path);
    const std::vector<int64_t> shape = stored_shape(tensor, position);
    if (text_field(entry, "dtype", where) != "F32" || field(entry, "shape", where) != Json(shape)) {
      throw Failure(where + " does not fit: expected F32 " + shape_text(shape));
    }
    const Json& offsets = list_field(entry, "data_offsets", where);
    const auto size = static_cast<int64_t>(parsed.body.size());
    if (offsets.size() != 2) throw Failure(where + ": data_offsets are not two numbers");
    const int64_t begin = whole(offsets[0], 0, size, where), end = whole(offsets[1], begin, size, where);
    if (static_cast<uint64_t>(end - begin) != stored_bytes(tensor, position)) throw Failure(where + ": holds too few or too many bytes");
    found[name] = {shape, parsed.body.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin))};
    total += static_cast<uint64_t>(end - begin);
  }
  if (total != parsed.body.size()) throw Failure(path + ": holds bytes that belong to no tensor");
  return found;
}

}  // namespace

void save_state(const std::string& path, Session& session, const Said& said, bool force) {
  const int64_t position = session.position();
  const OrderedJson header = {{"version", kFormat}, {"artifact", session.manifest().digest}, {"window", session.manifest().window},
                              {"position", position}, {"tokens", said.tokens}, {"messages", said.messages}, {"tools", said.tools}};
  const std::string text = header.dump(-1, ' ', /*ensure_ascii=*/true);
  std::map<std::string, std::string> stored;  // by name
  std::map<std::string, std::vector<int64_t>> shapes;
  for (StateTensor& tensor : session.state()) {
    std::string& bytes = stored[tensor.spec.name];
    bytes.resize(stored_bytes(tensor, position));
    shapes[tensor.spec.name] = stored_shape(tensor, position);
    transfer(tensor, position, bytes.data(), /*reading=*/false);
  }
  Views tensors;
  OrderedJson entries;
  uint64_t offset = 0;
  for (const auto& [name, bytes] : stored) {
    tensors[name] = {shapes[name], bytes};
    entries[name] = {{"dtype", "F32"}, {"shape", shapes[name]}, {"data_offsets", {offset, offset + bytes.size()}}};
    offset += bytes.size();
  }
  OrderedJson document = {{kMetadata, {{kKey, checksum(text, tensors) + " " + text}}}};
  document.update(entries);
  std::string head = document.dump();
  head.resize((head.size() + 7) / 8 * 8, ' ');
  std::string data;
  for (uint64_t length = head.size(), byte = 0; byte < 8; ++byte) data += static_cast<char>(length >> (8 * byte) & 0xff);
  data += head;
  for (const auto& [name, bytes] : stored) data += bytes;
  if (const uint64_t most = most_bytes(session); data.size() > most) {
    throw Failure("cannot write " + path + ": " + std::to_string(data.size()) + " bytes, at most " + std::to_string(most) + " are read back; shorten the messages");
  }
  write_file(path, data, force);
}

Said load_state(const std::string& path, Session& session) {
  const std::string data = read_file(path, most_bytes(session));
  const Parsed parsed = split(path, data);
  const size_t space = parsed.metadata.find(' ');
  if (space == std::string::npos) throw Failure(path + ": not a saved state: no checksum");
  const std::string text = parsed.metadata.substr(space + 1);
  const Json header = parse_json(text, path);
  const Manifest& manifest = session.manifest();
  const Json version = header.is_object() ? header.value("version", Json()) : Json();
  if (version != kFormat) throw Failure(path + ": format version " + version.dump().substr(0, 40) + ", lfm2_runner reads " + std::to_string(kFormat));
  if (text_field(header, "artifact", path) != manifest.digest) throw Failure(path + ": saved from another artifact; a state fits only the one it came from");
  if (const int64_t window = whole_field(header, "window", 0, INT64_MAX, path); window != manifest.window) {
    throw Failure(path + ": saved at window " + std::to_string(window) + ", this artifact's is " + std::to_string(manifest.window));
  }
  const int64_t position = whole_field(header, "position", 0, manifest.window, path);
  const OrderedJson spelled = parse_ordered_json(text, path);
  const Said said{token_field(header, "tokens", manifest.vocab, path), spelled.value("messages", OrderedJson()), spelled.value("tools", OrderedJson())};
  for (const Json& message : list_field(header, "messages", path)) text_field(message, "role", path + ": messages");
  if (!said.tools.is_null() && !said.tools.is_array()) throw Failure(path + ": tools: expected a list or null");
  if (static_cast<int64_t>(said.tokens.size()) != position) {
    throw Failure(path + ": position " + std::to_string(position) + " with " + std::to_string(said.tokens.size()) + " tokens");
  }
  Views tensors = views(path, parsed, session, position);
  if (checksum(text, tensors) != parsed.metadata.substr(0, space)) throw Failure(path + ": its checksum does not match; the file was altered or damaged");
  for (StateTensor& tensor : session.state()) {
    std::string bytes(tensors[tensor.spec.name].second);
    transfer(tensor, position, bytes.data(), /*reading=*/true);
  }
  session.stand_at(position);
  return said;
}

}  // namespace lfm2

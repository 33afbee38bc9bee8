#include "manifest.h"

#include <algorithm>
#include <cctype>

#include "checksum.h"
#include "failure.h"
#include "json_fields.h"

namespace lfm2 {
namespace {

constexpr const char* kTokenizer = "tokenizer.json";
constexpr int64_t kSchema = 1;
constexpr uint64_t kMostBytes = 16 << 20;
constexpr int64_t kMostTokens = 1 << 24;    // of a window or vocabulary: beyond any model, and no product overflows
constexpr int64_t kMostElements = 1 << 30;  // of one dimension
constexpr size_t kMostTensors = 4096;
constexpr size_t kMostDimensions = 8;

[[noreturn]] void refuse(const std::string& where, const std::string& what) { throw Failure(where + ": " + what); }

void expect(const Json& object, const char* name, const std::string& wanted, const std::string& where) {
  const std::string found = text_field(object, name, where);
  if (found != wanted) {
    refuse(where, std::string(name) + " is '" + found.substr(0, 40) + "'; lfm2_runner runs '" + wanted + "'");
  }
}

// "T" as -1, "T+2" as -3; any other name as "T".
int64_t varying(const std::string& name) {
  int more = 0;
  return std::sscanf(name.c_str(), "T+%5d", &more) == 1 && more > 0 ? -1 - more : -1;
}

TensorSpec tensor(const Json& value, const std::string& where) {
  TensorSpec spec;
  spec.name = text_field(value, "name", where);
  spec.dtype = text_field(value, "dtype", where);
  if (value.contains("written")) spec.written = flag_field(value, "written", where);
  for (const Json& size : list_field(value, "shape", where)) {
    spec.shape.push_back(size.is_string() ? varying(size.get<std::string>()) : whole(size, 0, kMostElements, where + ": shape"));
  }
  if (spec.shape.size() > kMostDimensions) refuse(where, "a tensor of too many dimensions");
  return spec;
}

std::vector<TensorSpec> tensors(const Json& method, const char* name, const std::string& where) {
  const Json& list = list_field(method, name, where);
  if (list.size() > kMostTensors) refuse(where, std::string("too many ") + name);
  std::vector<TensorSpec> specs;
  for (const Json& value : list) specs.push_back(tensor(value, where + ": " + name));
  return specs;
}

// "1.5" of "executorch==1.5.1" as {1, 5}.
std::pair<int, int> release(const std::string& requirement, const std::string& where) {
  int major = 0, minor = 0;
  if (std::sscanf(requirement.c_str(), "executorch==%4d.%4d.", &major, &minor) != 2 || major < 0 || minor < 0) {
    refuse(where, "runtime_requirement is '" + requirement.substr(0, 40) + "', not a release of executorch");
  }
  return {major, minor};
}

void check_runtime(const Json& document, const std::string& where) {
  const std::string wanted = text_field(document, "runtime_requirement", where);
  const auto needed = release(wanted, where), here = release("executorch==" LFM2_EXECUTORCH_VERSION, where);
  if (needed.first != here.first || needed.second > here.second) {
    refuse(where, "needs " + wanted + "; this lfm2_runner is built on executorch " LFM2_EXECUTORCH_VERSION);
  }
}

std::string stem(const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  const size_t dot = name.rfind('.');
  return dot == std::string::npos || dot == 0 || dot + 1 == name.size() ? name : name.substr(0, dot);
}

// As Python's json.dumps spells it.
std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', /*ensure_ascii=*/true); }

// SHA-256 over the files that decide the numbers: the model's own, and any weights beside it under the same stem.
std::string digest(const Json& files, const std::string& model) {
  std::string entries;
  for (const auto& [name, entry] : files.items()) {  // sorted by name, as Python sorts them
    if (stem(name) != stem(model)) continue;
    entries += (entries.empty() ? "" : ", ") + ("[" + quoted(name)) + ", " + quoted(text_field(entry, "sha256", name)) + "]";
  }
  Sha256 sha;
  sha.update("[" + entries + "]");
  return sha.hex();
}

}  // namespace

bool is_plain_path(const std::string& name) {
  std::string part;
  for (const char letter : name + "/") {
    if (letter == '\\' || std::iscntrl(static_cast<unsigned char>(letter))) return false;
    if (letter != '/') {
      part += letter;
      continue;
    }
    if (part.empty() || part == "." || part == "..") return false;
    part.clear();
  }
  return true;
}

bool is_cache(const std::string& state) { return state.rfind("key.", 0) == 0 || state.rfind("value.", 0) == 0; }

namespace {

void check_signature(const Manifest& manifest, const std::string& where) {
  const auto& inputs = manifest.inputs;
  const bool fits = inputs.size() >= 2 && inputs[0].name == "tokens" && inputs[0].dtype == "int64" &&
                    inputs[0].shape == std::vector<int64_t>{1, -1} && inputs[1].name == "position" &&
                    inputs[1].dtype == "int64" && inputs[1].shape == std::vector<int64_t>{1} && !inputs[0].written &&
                    !inputs[1].written;
  if (!fits) refuse(where, "the method does not begin with tokens [1, T] and position [1]");
  if (manifest.outputs.size() != 1 || manifest.outputs[0].dtype != "float32" ||
      manifest.outputs[0].shape != std::vector<int64_t>{1, manifest.vocab}) {
    refuse(where, "the method's output is not logits [1, vocabulary] in float32");
  }
  for (size_t i = 2; i < inputs.size(); ++i) {
    const TensorSpec& state = inputs[i];
    const bool cache = is_cache(state.name);
    const bool whole = state.name.rfind("conv_state.", 0) == 0 || state.name.rfind("sliding_key.", 0) == 0 ||
                       state.name.rfind("sliding_value.", 0) == 0;
    const size_t dimensions = cache ? 4 : 3;
    if (!state.written || (!cache && !whole) || state.shape.size() != dimensions ||
        std::any_of(state.shape.begin(), state.shape.end(), [](int64_t size) { return size < 0; })) {
      refuse(where, "input '" + state.name.substr(0, 40) + "' is no state that lfm2_runner knows");
    }
    if (cache ? state.shape[1] != manifest.window || state.shape[2] != 1 : state.shape[0] != 1) {
      refuse(where, "input '" + state.name.substr(0, 40) + "' does not fit the window of " + std::to_string(manifest.window));
    }
    for (size_t other = 2; other < i; ++other) {
      if (inputs[other].name == state.name) refuse(where, "two inputs named '" + state.name + "'");
    }
  }
}

}  // namespace

Manifest read_manifest(const ArtifactFiles& artifact) {
  const std::string where = artifact.where(kManifest);
  const Json document = parse_json(artifact.read(kManifest, kMostBytes), where);
  if (!document.is_object()) refuse(where, "expected an object");
  const Json version = document.value("schema_version", Json());
  if (version != kSchema) refuse(where, "schema version " + version.dump().substr(0, 40) + ", lfm2_runner reads " + std::to_string(kSchema));
  expect(document, "target", "xnnpack", where);
  expect(document, "form", "explicit", where);
  expect(document, "transport", "inplace", where);
  expect(document, "cache_layout", "heads-time", where);
  check_runtime(document, where);

  Manifest manifest;
  manifest.window = whole_field(document, "window", 1, kMostTokens, where);
  const Json& config = field(field(document, "source", where), "config", where + ": source");
  manifest.vocab = whole_field(config, "vocab_size", 1, kMostTokens, where + ": source: config");
  if (config.contains("eos_token_ids")) {
    manifest.stop_tokens = token_field(config, "eos_token_ids", manifest.vocab, where + ": source: config");
  }
  const Json& methods = list_field(document, "methods", where);
  if (methods.empty()) refuse(where, "expected one method or more");
  manifest.method = text_field(methods[0], "name", where);
  manifest.max_tokens = whole_field(methods[0], "max_tokens", 1, kMostTokens, where);
  manifest.inputs = tensors(methods[0], "inputs", where);
  manifest.outputs = tensors(methods[0], "outputs", where);
  check_signature(manifest, where);
  for (const Json& method : methods) {
    if (text_field(method, "name", where) != kVerify) continue;
    manifest.max_verified = whole_field(method, "max_tokens", 1, manifest.max_tokens, where);
    manifest.verify_inputs = tensors(method, "inputs", where);
    manifest.verified = tensors(method, "outputs", where);
  }

  const std::string file = text_field(methods[0], "file", where);
  const Json& files = field(document, "files", where);
  const Json& entry = field(files, file.c_str(), where + ": files");
  if (!is_plain_path(file)) refuse(where, "file path " + shown(file) + " leaves the folder");
  manifest.model_file = file;
  manifest.model_path = artifact.where(file);
  manifest.model_size = static_cast<uint64_t>(whole_field(entry, "size", 0, INT64_MAX, where + ": files"));
  manifest.model_sha256 = text_field(entry, "sha256", where + ": files");
  if (files.contains(kTokenizer)) manifest.tokenizer_sha256 = text_field(files[kTokenizer], "sha256", where + ": files");
  manifest.digest = digest(files, file);
  return manifest;
}

void check_verify(const Manifest& manifest) {
  const std::vector<TensorSpec>&inputs = manifest.verify_inputs, &outputs = manifest.verified;
  std::vector<std::vector<int64_t>> shapes = {{1, -1, manifest.vocab}};
  bool fits = inputs.size() == manifest.inputs.size();
  for (size_t i = 0; fits && i < inputs.size(); ++i) {
    const TensorSpec& state = manifest.inputs[i];
    fits = inputs[i].name == state.name && inputs[i].dtype == state.dtype && inputs[i].shape == state.shape;
    if (i < 2 || is_cache(state.name)) continue;
    shapes.push_back({1, -1 - state.shape[1], state.shape[2]});
    fits = fits && state.dtype == "float32";  // its columns are copied into it
  }
  fits = fits && outputs.size() == shapes.size();
  for (size_t i = 0; fits && i < shapes.size(); ++i) fits = outputs[i].dtype == "float32" && outputs[i].shape == shapes[i];
  if (!fits) throw Failure(manifest.model_path + ": the manifest's method 'verify' does not fit the first one");
}

}  // namespace lfm2

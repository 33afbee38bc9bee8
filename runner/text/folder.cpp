#include "folder.h"

#include <sys/stat.h>

#include <algorithm>

#include "../failure.h"
#include "../files.h"

namespace lfm2 {
namespace {

constexpr uint64_t kMostBytes = 16 << 20, kMostTemplate = 1 << 20;

bool is_there(const std::string& path) {
  struct stat found {};
  return ::lstat(path.c_str(), &found) == 0;
}

Json read_object(const std::string& path) {
  const Json document = parse_json(read_file(path, kMostBytes), path);
  if (!document.is_object()) throw Failure(path + ": expected an object");
  return document;
}

Json optional_object(const std::string& path) { return is_there(path) ? read_object(path) : Json::object(); }

Json config_of(const std::string& folder) {
  const std::string where = folder + "/manifest.json";
  return field(field(read_object(where), "source", where), "config", where + ": source");
}

// A special token is spelled as a string or as an object with `content`.
std::string token_text(const Json& settings, const char* name) {
  const Json token = settings.value(name, Json());
  const Json content = token.is_object() ? token.value("content", Json()) : token;
  return content.is_string() ? content.get<std::string>() : "";
}

// One id, a list of them or none.
void add_ends(const Json& document, const char* name, int64_t vocab, const std::string& where, std::vector<int64_t>& ends) {
  const Json given = document.value(name, Json());
  if (given.is_null()) return;
  for (const Json& id : given.is_array() ? given : Json::array({given})) {
    const int64_t token = whole(id, 0, vocab - 1, where + ": " + name);
    if (std::find(ends.begin(), ends.end(), token) == ends.end()) ends.push_back(token);
  }
}

// As text, or several named ones: [{"name": "default", "template": "..."}, ...].
std::string template_in(const Json& settings, const std::string& where) {
  Json found = settings.value("chat_template", Json());
  if (found.is_array()) {
    const auto is_default = [](const Json& entry) { return entry.is_object() && entry.value("name", Json()) == "default"; };
    const auto entry = std::find_if(found.begin(), found.end(), is_default);
    found = entry == found.end() ? Json() : Json(entry->value("template", Json()));
  }
  if (found.is_null()) throw Failure(where + ": no chat template");
  if (!found.is_string() || found.get<std::string>().size() > kMostTemplate) throw Failure(where + ": chat_template: expected text of at most 1 MiB");
  return found.get<std::string>();
}

}  // namespace

TextFolder::TextFolder(const std::string& folder) : TextFolder(folder, config_of(folder)) {}

TextFolder::TextFolder(const std::string& folder, const Json& config)
    : tokenizer(folder, whole_field(config, "vocab_size", 1, 1 << 24, folder + "/manifest.json")) {
  const int64_t vocab = whole_field(config, "vocab_size", 1, 1 << 24, folder);
  const std::string settings_path = folder + "/tokenizer_config.json", generation_path = folder + "/generation_config.json";
  const Json settings = optional_object(settings_path);
  special = Json::object();
  for (const char* name : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    if (const std::string text = token_text(settings, name); !text.empty()) special[name] = text;
  }
  if (const Json bos = config.value("bos_token_id", Json()); !special.contains("bos_token") && !bos.is_null()) {
    special["bos_token"] = tokenizer.name(whole(bos, 0, vocab - 1, folder + "/manifest.json: bos_token_id"));
  }
  add_ends(config, "eos_token_ids", vocab, folder + "/manifest.json", stop_tokens);
  add_ends(optional_object(generation_path), "eos_token_id", vocab, generation_path, stop_tokens);
  if (stop_tokens.empty()) {
    if (const int64_t end = tokenizer.id(special.value("eos_token", "")); end >= 0) stop_tokens.push_back(end);
  }
  where = folder + "/chat_template.jinja";
  source = is_there(where) ? read_file(where, kMostTemplate) : template_in(settings, where = settings_path);
}

}  // namespace lfm2

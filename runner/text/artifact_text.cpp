#include "artifact_text.h"

#include <algorithm>

#include "../failure.h"

namespace lfm2 {
namespace {

constexpr size_t kMostTemplate = 1 << 20;  // bytes

Json object_in(const TextFile& file) {
  const Json document = parse_json(file.data, file.where);
  if (!document.is_object()) throw Failure(file.where + ": expected an object");
  return document;
}

// As if it were empty where there is none.
TextFile optional(const TextFiles& files, const char* name) {
  const auto found = files.find(name);
  return found == files.end() ? TextFile{name, "{}"} : found->second;
}

Json config_of(const TextFile& manifest) { return field(field(object_in(manifest), "source", manifest.where), "config", manifest.where + ": source"); }

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

ArtifactText::ArtifactText(const TextFiles& files) : ArtifactText(files, config_of(files.at("manifest.json"))) {}

ArtifactText::ArtifactText(const TextFiles& files, const Json& config)
    : tokenizer(files.at("tokenizer.json"), whole_field(config, "vocab_size", 1, 1 << 24, files.at("manifest.json").where)) {
  const std::string& manifest = files.at("manifest.json").where;
  const int64_t vocab = whole_field(config, "vocab_size", 1, 1 << 24, manifest);
  const TextFile settings_file = optional(files, "tokenizer_config.json"), generation = optional(files, "generation_config.json");
  const Json settings = object_in(settings_file);
  special = Json::object();
  for (const char* name : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    if (const std::string text = token_text(settings, name); !text.empty()) special[name] = text;
  }
  if (const Json bos = config.value("bos_token_id", Json()); !special.contains("bos_token") && !bos.is_null()) {
    special["bos_token"] = tokenizer.name(whole(bos, 0, vocab - 1, manifest + ": bos_token_id"));
  }
  add_ends(config, "eos_token_ids", vocab, manifest, stop_tokens);
  add_ends(object_in(generation), "eos_token_id", vocab, generation.where, stop_tokens);
  if (stop_tokens.empty()) {
    if (const int64_t end = tokenizer.id(special.value("eos_token", "")); end >= 0) stop_tokens.push_back(end);
  }
  const auto own = files.find("chat_template.jinja");
  where = own == files.end() ? settings_file.where : own->second.where;
  source = own == files.end() ? template_in(settings, where) : own->second.data;
}

}  // namespace lfm2

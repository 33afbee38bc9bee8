#include "bundle.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "checksum.h"
#include "failure.h"
#include "json_fields.h"
#include "manifest.h"
#include "zip_format.h"

namespace lfm2 {
namespace {

constexpr const char* kDescription = "bundle.json";
constexpr int64_t kSchema = 1;
constexpr std::string_view kKeys[] = {"schema_version", "kind", "source", "random_weights", "recipe", "target",
                                      "form", "window", "runtime_requirement", "eos_ids", "files"};
constexpr uint64_t kMostBytes = 16 << 20;

// Of bundle.json, and where the manifest says the same.
constexpr std::pair<const char*, const char*> kSame[] = {
    {"source", "/source/name"}, {"random_weights", "/source/random_weights"}, {"recipe", "/recipe/name"}, {"target", "/target"}, {"form", "/form"},
    {"window", "/window"}, {"runtime_requirement", "/runtime_requirement"}};

// Every file in the archive, in the order that bundle.json has and `bundle` writes.
void check_names(const std::vector<std::string>& found, const Json& listed, const std::string& path) {
  std::vector<std::string> wanted = {kDescription};
  for (const auto& [name, entry] : listed.items()) wanted.push_back(name);
  if (found != wanted) throw Failure(path + ": its files are not those that bundle.json lists, in that order");
}

void check_file(const Json& entry, std::string_view bytes, bool summed, const std::string& where) {
  const int64_t size = whole_field(entry, "size", 0, INT64_MAX, where);
  const std::string listed = text_field(entry, "sha256", where);
  if (static_cast<uint64_t>(size) != bytes.size()) {
    throw Failure(where + ": " + std::to_string(bytes.size()) + " bytes, " + std::to_string(size) + " are listed");
  }
  if (summed && sha256(bytes) != listed) throw Failure(where + ": SHA-256 differs; the file was altered or damaged");
}

// One document says what the other says; neither alone decides.
void check_agreement(const Json& description, const Json& manifest, const std::string& path) {
  for (const auto& [name, its] : kSame) {
    const Json::json_pointer place(its);
    if (!manifest.contains(place) || manifest[place] != description.value(name, Json())) {
      throw Failure(path + ": " + name + ": bundle.json says something else than manifest.json");
    }
  }
  const Json &listed = description.at("files"), &files = field(manifest, "files", path);
  for (const auto& [name, entry] : listed.items()) {
    if (name == kManifest || name == kGolden) continue;
    const auto vouched = files.find(name);
    if (vouched == files.end()) throw Failure(path + ": " + shown(name) + " is not listed in manifest.json");
    if (field(*vouched, "size", path) != entry.at("size") || field(*vouched, "sha256", path) != entry.at("sha256")) {
      throw Failure(path + ": " + shown(name) + ": manifest.json and bundle.json differ");
    }
  }
}

}  // namespace

Bundle::Bundle(const std::string& path) : path_(path), archive_(std::make_shared<MappedFile>(path)) {
  std::vector<std::string> names;
  for (const ZipEntry& entry : read_entries(archive_->bytes(), path)) {
    if (!is_plain_path(entry.name)) throw Failure(path + ": file name " + shown(entry.name) + " leaves the folder or is no plain name");
    if (!files_.emplace(entry.name, entry.content).second) throw Failure(path + ": " + shown(entry.name) + " is there twice");
    names.push_back(entry.name);
  }
  const std::string where = this->where(kDescription), text = read(kDescription, kMostBytes);
  const Json description = parse_json(text, where);
  if (parse_ordered_json(text, where).dump(2) + "\n" != text) throw Failure(where + ": not as `bundle` writes it; it was edited");
  if (const Json& version = field(description, "schema_version", where); version != kSchema) {
    throw Failure(where + ": schema version " + version.dump().substr(0, 40) + ", lfm2_runner reads " + std::to_string(kSchema));
  }
  if (const std::string kind = text_field(description, "kind", where); kind != "desktop" && kind != "android" && kind != "ios") {
    throw Failure(path + ": a bundle for " + shown(kind) + "; bundle the artifact with --for desktop");
  }
  for (const auto& [name, value] : description.items()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), name) == std::end(kKeys)) throw Failure(where + ": " + shown(name) + " is no key of it");
  }
  const Json& listed = field(description, "files", where);
  if (!listed.is_object()) throw Failure(where + ": files: expected an object");
  check_names(names, listed, path);
  const Json manifest = parse_json(read(kManifest, kMostBytes), this->where(kManifest));
  const Json& methods = list_field(manifest, "methods", this->where(kManifest));
  const std::string model = methods.empty() ? "" : text_field(methods[0], "file", this->where(kManifest));
  for (const auto& [name, entry] : listed.items()) check_file(entry, files_.at(name), name != model, this->where(name));
  check_agreement(description, manifest, path);
}

std::string_view Bundle::view(const std::string& name) const {
  const auto found = files_.find(name);
  if (found == files_.end()) throw Failure(path_ + ": holds no " + name);
  return found->second;
}

std::string Bundle::read(const std::string& name, uint64_t most) const {
  const std::string_view bytes = view(name);
  if (bytes.size() > most) throw Failure(where(name) + ": " + std::to_string(bytes.size()) + " bytes, at most " + std::to_string(most) + " are read");
  return std::string(bytes);
}

Content Bundle::map(const std::string& name) const { return {archive_, view(name)}; }

}  // namespace lfm2

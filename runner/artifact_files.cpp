#include "artifact_files.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "bundle.h"
#include "failure.h"

namespace lfm2 {
namespace {

namespace fs = std::filesystem;

class Folder : public ArtifactFiles {
 public:
  explicit Folder(const std::string& path) : path_(path) {}
  bool has(const std::string& name) const override { return fs::symlink_status(where(name)).type() != fs::file_type::not_found; }
  std::string read(const std::string& name, uint64_t most) const override { return read_file(where(name), most); }
  Content map(const std::string& name) const override {
    const auto file = std::make_shared<const MappedFile>(where(name));
    return {file, file->bytes()};
  }
  std::string where(const std::string& name) const override { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace

std::unique_ptr<ArtifactFiles> open_artifact(const std::string& path) {
  std::error_code error;
  const fs::path found = fs::canonical(path, error);  // the user's own link is followed, none inside the artifact
  if (error) throw Failure(path + ": " + error.message());
  if (!fs::is_directory(found)) return std::make_unique<Bundle>(found.string());
  auto folder = std::make_unique<Folder>(path);
  if (!folder->has(kManifest) && folder->has("parts.json")) {
    throw Failure(path + ": a bundle in parts; join them: cat " + path + "/*.zip.* > bundle.zip");
  }
  return folder;
}

}  // namespace lfm2

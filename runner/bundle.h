// The archive that `lfm2-export bundle` makes of an artifact, read where it lies: nothing is unpacked.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "artifact_files.h"

namespace lfm2 {

class Bundle : public ArtifactFiles {
 public:
  // Checks the archive's structure, that bundle.json vouches for every file by size and SHA-256, and that the manifest
  // says the same. The model's own bytes are Program's to check, so that each byte is read once.
  explicit Bundle(const std::string& path);

  bool has(const std::string& name) const override { return files_.count(name) != 0; }
  std::string read(const std::string& name, uint64_t most) const override;
  Content map(const std::string& name) const override;
  std::string where(const std::string& name) const override { return path_ + ": " + name; }

 private:
  std::string_view view(const std::string& name) const;

  std::string path_;
  std::shared_ptr<const MappedFile> archive_;
  std::map<std::string, std::string_view> files_;
};

}  // namespace lfm2

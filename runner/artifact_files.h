// What an artifact's files lie in, read through the same few methods: its folder, or the archive of `lfm2-export bundle`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "files.h"

namespace lfm2 {

constexpr const char *kManifest = "manifest.json", *kGolden = "golden.json";

// A file's bytes, mapped, as long as this lives. Nobody has vouched for them yet.
struct Content {
  std::shared_ptr<const MappedFile> file;  // which they are all or a part of
  std::string_view bytes;
};

class ArtifactFiles {
 public:
  virtual ~ArtifactFiles() = default;
  virtual bool has(const std::string& name) const = 0;

  // The whole of a file of at most `most` bytes. Failure otherwise, and where it is missing.
  virtual std::string read(const std::string& name, uint64_t most) const = 0;
  virtual Content map(const std::string& name) const = 0;  // Failure where it is missing, or in a folder empty

  virtual std::string where(const std::string& name) const = 0;  // as messages call it
};

// Of a folder or an archive. Failure, in one line, where there is neither, and for an archive that is damaged or forged.
std::unique_ptr<ArtifactFiles> open_artifact(const std::string& path);

}  // namespace lfm2

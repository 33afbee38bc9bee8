// A program's bytes, as ExecuTorch asks for them.
#pragma once

#include <executorch/runtime/core/data_loader.h>

#include "artifact_files.h"

namespace lfm2 {

// Where they are a whole file, each piece is given where it lies. Within an archive it lies anywhere, and ExecuTorch wants
// tensors aligned: there a piece is copied, and freed once a backend has packed its weights.
class ProgramBytes final : public executorch::runtime::DataLoader {
 public:
  explicit ProgramBytes(const Content& content);

  executorch::runtime::Result<executorch::runtime::FreeableBuffer> load(size_t offset, size_t size, const SegmentInfo&) const override;
  executorch::runtime::Error load_into(size_t offset, size_t size, const SegmentInfo&, void* buffer) const override;
  executorch::runtime::Result<size_t> size() const override { return content_.bytes.size(); }

 private:
  bool holds(size_t offset, size_t size) const;

  Content content_;
  bool in_place_;
};

}  // namespace lfm2

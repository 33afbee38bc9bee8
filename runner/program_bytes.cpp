#include "program_bytes.h"

#include <cstdlib>
#include <cstring>

namespace lfm2 {
namespace {

namespace et = executorch::runtime;

constexpr size_t kAlignment = 128;  // of a .pte's segments, from its first byte

void free_copy(void*, void* data, size_t) { std::free(data); }

}  // namespace

ProgramBytes::ProgramBytes(const Content& content) : content_(content), in_place_(reinterpret_cast<uintptr_t>(content.bytes.data()) % kAlignment == 0) {}

bool ProgramBytes::holds(size_t offset, size_t size) const { return offset <= content_.bytes.size() && size <= content_.bytes.size() - offset; }

et::Result<et::FreeableBuffer> ProgramBytes::load(size_t offset, size_t size, const SegmentInfo&) const {
  if (!holds(offset, size)) return et::Error::InvalidArgument;
  const char* bytes = content_.bytes.data() + offset;
  if (in_place_) return et::FreeableBuffer(bytes, size, /*free_fn=*/nullptr);
  void* copy = std::aligned_alloc(kAlignment, (size / kAlignment + 1) * kAlignment);
  if (copy == nullptr) return et::Error::MemoryAllocationFailed;
  std::memcpy(copy, bytes, size);
  content_.file->let_go();  // the copy is in its place
  return et::FreeableBuffer(copy, size, free_copy);
}

et::Error ProgramBytes::load_into(size_t offset, size_t size, const SegmentInfo&, void* buffer) const {
  if (!holds(offset, size)) return et::Error::InvalidArgument;
  std::memcpy(buffer, content_.bytes.data() + offset, size);
  return et::Error::Ok;
}

}  // namespace lfm2

// A loaded .pte: checked against its manifest, its methods ready to be called with the caller's own tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "manifest.h"

namespace lfm2 {

class Program {
 public:
  // Checks the size and SHA-256 of the model's bytes before ExecuTorch sees one of them, then that the method's inputs and
  // outputs are those of the manifest. `threads` of 0: as many as ExecuTorch thinks fit. Failure if anything is wrong.
  Program(const Manifest& manifest, const Content& model, uint32_t threads);
  ~Program();

  // Hands over a state tensor, `manifest.inputs[index]`, once: the methods write into it, nothing is copied.
  void bind(size_t index, void* data);

  // Logits [vocab] of the last token, valid until the next call. Failure where ExecuTorch reports an error.
  const float* run(const std::vector<int64_t>& tokens, int64_t position);

  // Logits [T, vocab] of every token, and each conv state's columns [L-1+T, hidden], valid until the next call of this
  // method; conv states are left as they are. The first call loads the method. Failure as above, and without the method.
  struct Verified {
    const float* logits;
    std::vector<const float*> columns;
  };
  Verified verify(const std::vector<int64_t>& tokens, int64_t position);

  size_t threads() const;

 private:
  struct Loaded;
  std::unique_ptr<Loaded> loaded_;
};

// Bytes of one element of a manifest's dtype. Failure for a type that this program does not know.
size_t bytes_of(const std::string& dtype);

// The product, times the element size. Failure where that overflows.
size_t bytes_of(const TensorSpec& spec);

// Once, before anything else of this file.
void start_executorch();

}  // namespace lfm2

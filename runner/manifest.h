// What an artifact's manifest.json promises, as far as this program relies on it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "artifact_files.h"

namespace lfm2 {

// One input or output of a method. A size below 0 varies with the number T of a call's tokens: -1 is T, -3 is T+2.
struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  bool written = false;  // the caller's own state, changed in place
};

constexpr const char* kVerify = "verify";  // the method that verifies drafts, where there is one

struct Manifest {
  std::string model_file;
  std::string model_path;  // as messages call it
  uint64_t model_size = 0;
  std::string model_sha256;
  std::string method;
  std::vector<TensorSpec> inputs;  // tokens, position, then the state
  std::vector<TensorSpec> outputs;
  int64_t window = 0;      // tokens
  int64_t max_tokens = 0;  // of one call
  int64_t vocab = 0;
  std::vector<TensorSpec> verify_inputs;
  std::vector<TensorSpec> verified;  // outputs of the method "verify": logits, then each conv state's columns; or none
  int64_t max_verified = 0;          // tokens of a call of that method; 0 where there is none
  std::vector<int64_t> stop_tokens;
  std::string tokenizer_sha256;  // empty where there is no tokenizer
  std::string digest;            // lfm2_export.chat.saved_state's artifact_digest: what a saved state belongs to
};

// Whether a state tensor is a KV cache, written at a position, and not one that each call replaces whole.
bool is_cache(const std::string& state);

// Failure, in one line that names the file, for a manifest that is missing, malformed or of a later schema, for an
// artifact that this program does not run, and for a model path that leaves the folder.
Manifest read_manifest(const ArtifactFiles& artifact);

// Whether a file's name is a path below the folder: no part of it empty, `.` or `..`, no backslash, nothing unprintable.
bool is_plain_path(const std::string& name);

// Failure where the method that verifies drafts takes another state than the first one, or gives anything but logits of
// every token and what each convolution went over.
void check_verify(const Manifest& manifest);

}  // namespace lfm2

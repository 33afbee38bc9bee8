#include "session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "failure.h"

namespace lfm2 {

size_t StateTensor::run_bytes(int64_t position) const {
  if (!cache) return bytes;
  return static_cast<size_t>(position) * static_cast<size_t>(spec.shape[3]) * bytes_of(spec.dtype);
}

Session::Session(const ArtifactFiles& artifact, const Manifest& manifest, uint32_t threads)
    : manifest_(manifest), program_(manifest, artifact.map(manifest.model_file), threads) {
  for (size_t index = 2; index < manifest_.inputs.size(); ++index) {
    StateTensor tensor;
    tensor.spec = manifest_.inputs[index];
    tensor.bytes = bytes_of(tensor.spec);
    tensor.cache = is_cache(tensor.spec.name);
    // zeroed by the system as it is first touched, so a long window costs only what is filled
    tensor.data.reset(static_cast<char*>(std::calloc(std::max<size_t>(tensor.bytes, 1), 1)));
    if (!tensor.data) throw Failure("no memory for '" + tensor.spec.name + "', " + std::to_string(tensor.bytes) + " bytes");
    program_.bind(index, tensor.data.get());
    state_.push_back(std::move(tensor));
  }
}

void Session::check_room(const std::vector<int64_t>& tokens) const {
  const auto count = static_cast<int64_t>(tokens.size());
  if (tokens.empty()) throw Failure("a chunk needs at least one token");
  if (count > manifest_.window - position_) {
    throw WindowExceeded(std::to_string(position_) + " + " + std::to_string(count) + " tokens do not fit the window of " +
                         std::to_string(manifest_.window));
  }
  for (const int64_t token : tokens) {
    if (token < 0 || token >= manifest_.vocab) {
      throw Failure("token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(manifest_.vocab));
    }
  }
}

const float* Session::feed(const std::vector<int64_t>& tokens) {
  check_room(tokens);
  verified_ = 0;
  const auto count = static_cast<int64_t>(tokens.size());
  const float* logits = nullptr;
  for (int64_t start = 0; start < count; start += manifest_.max_tokens) {
    const int64_t end = std::min(start + manifest_.max_tokens, count);
    logits = program_.run({tokens.begin() + start, tokens.begin() + end}, position_);
    position_ += end - start;
  }
  if (!std::exchange(has_fed_, true)) move_weights();
  return logits;
}

const float* Session::verify(const std::vector<int64_t>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  if (count > manifest_.max_verified) {
    throw Failure(std::to_string(count) + " tokens to verify; this artifact verifies up to " + std::to_string(manifest_.max_verified) + " at once");
  }
  check_room(tokens);
  Program::Verified found = program_.verify(tokens, position_);
  columns_ = std::move(found.columns);
  verified_ = count;
  if (!std::exchange(has_verified_, true)) move_weights();
  return found.logits;
}

void Session::keep(int64_t count) {
  if (count < 0 || count > verified_) {
    throw Failure(std::to_string(count) + " tokens to keep, of " + std::to_string(verified_) + " that were verified");
  }
  size_t convolution = 0;
  for (StateTensor& tensor : state_) {
    if (count == 0 || tensor.cache) continue;  // what was let go of lies behind the position, where no call looks
    std::memcpy(tensor.data.get(), columns_[convolution++] + count * tensor.spec.shape[2], tensor.bytes);
  }
  position_ += count;
  verified_ = 0;
}

// In the background, and only once a method has answered: where free memory lies in pieces it takes seconds, during which
// the first answer would wait for each new page.
void Session::move_weights() {
  settle();
  moving_ = std::async(std::launch::async, [this] { pages_.adopt(); });
}

void Session::settle() {
  if (moving_.valid()) moving_.wait();
}

void Session::reset() {
  position_ = verified_ = 0;
  for (StateTensor& tensor : state_) {
    if (!tensor.cache) std::memset(tensor.data.get(), 0, tensor.bytes);
  }
}

void Session::stand_at(int64_t position) {
  if (position < 0 || position > manifest_.window) throw Failure("a state at " + std::to_string(position) + " does not fit the window");
  position_ = position;
  verified_ = 0;
}

}  // namespace lfm2

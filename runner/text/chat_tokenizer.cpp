#include "chat_tokenizer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "../failure.h"

namespace lfm2 {
namespace {

// LFM2's and LFM3's. The library takes others, some of them silently in another way than Hugging Face's: it tries RE2
// first, whose \s knows ASCII alone.
constexpr const char* kPreTokenizer = R"json({"type": "Sequence", "pretokenizers": [
  {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
   "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
  {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})json";

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw Failure(where + ": " + what + "; text in C++ takes LFM2's kind of tokenizer alone");
}

// Null, false and empty are the absence of an option.
bool is_set(const Json& object, const char* name) {
  const Json value = object.value(name, Json());
  return !(value.is_null() || value == false || value == "");
}

void check_kind(const Json& document, const Json& model, const std::string& where) {
  if (text_field(model, "type", where) != "BPE") refuse(where, "a model that is not BPE");
  for (const char* option : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"}) {
    if (is_set(model, option)) refuse(where, std::string("model has ") + option);
  }
  if (is_set(document, "normalizer")) refuse(where, "it has a normalizer");
  if (document.value("pre_tokenizer", Json()) != Json::parse(kPreTokenizer)) refuse(where, "another pre_tokenizer");
  if (text_field(field(document, "decoder", where), "type", where) != "ByteLevel") refuse(where, "a decoder that is not ByteLevel");
}

std::unordered_map<std::string, int64_t> added_tokens(const Json& document, int64_t vocab, const std::string& where) {
  std::unordered_map<std::string, int64_t> found;
  std::set<std::string> sorted;
  for (const Json& token : list_field(document, "added_tokens", where)) {
    const std::string content = text_field(token, "content", where);
    for (const char* option : {"single_word", "lstrip", "rstrip"}) {
      if (is_set(token, option)) refuse(where, "an added token with " + std::string(option));
    }
    if (content.empty()) refuse(where, "an added token without text");
    found[content] = whole_field(token, "id", 0, vocab - 1, where + ": added_tokens");
    sorted.insert(content);
  }
  for (auto next = sorted.begin(); next != sorted.end() && std::next(next) != sorted.end(); ++next) {
    if (std::next(next)->rfind(*next, 0) == 0) refuse(where, "one added token begins another");
  }
  return found;
}

size_t characters(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

// The library takes a whole word that is a token as that token; Hugging Face's does so only where merges lead to it.
void check_merges(const Json& model, const std::unordered_map<std::string, int64_t>& added, const std::string& where) {
  if (is_set(model, "ignore_merges")) return;
  std::set<std::string> made;
  for (const Json& merge : list_field(model, "merges", where)) {
    if (merge.is_string()) {
      std::string pair = merge.get<std::string>();
      pair.erase(std::min(pair.find(' '), pair.size()), 1);
      made.insert(pair);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      made.insert(merge[0].get<std::string>() + merge[1].get<std::string>());
    } else {
      refuse(where, "a merge that is not of two tokens");
    }
  }
  for (const auto& [token, id] : field(model, "vocab", where).items()) {
    if (characters(token) > 1 && made.count(token) == 0 && added.count(token) == 0) refuse(where, "a token that no merge makes");
  }
}

// The library opens a path; what it reads is what was checked.
class Memory {
 public:
  explicit Memory(const std::string& data) : file_(::memfd_create("tokenizer.json", MFD_CLOEXEC)) {
    for (size_t done = 0; done < data.size();) {
      const ssize_t count = ::write(file_, data.data() + done, data.size() - done);
      if (count <= 0) throw Failure("no memory for a tokenizer");
      done += static_cast<size_t>(count);
    }
  }
  ~Memory() { ::close(file_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

}  // namespace

ChatTokenizer::ChatTokenizer(const TextFile& file, int64_t vocab) : where_(file.where), known_(static_cast<size_t>(vocab)) {
  const Json document = parse_json(file.data, where_);
  const Json& model = field(document, "model", where_);
  check_kind(document, model, where_);
  added_ = added_tokens(document, vocab, where_);
  check_merges(model, added_, where_);
  for (const auto& [token, id] : field(model, "vocab", where_).items()) {
    known_[static_cast<size_t>(whole(id, 0, vocab - 1, where_ + ": vocab"))] = true;
  }
  for (const auto& [token, id] : added_) known_[static_cast<size_t>(id)] = true;
  if (library_.load(Memory(file.data).path()) != tokenizers::Error::Ok) throw Failure(where_ + ": not a working tokenizer");
}

std::vector<int64_t> ChatTokenizer::encode(const std::string& text) const {
  const auto found = library_.encode(text, /*bos=*/0, /*eos=*/0);
  if (!found.ok()) throw Failure(where_ + ": cannot encode this text");
  std::vector<int64_t> tokens(found->begin(), found->end());
  std::string back;
  for (const int64_t token : tokens) back += bytes(token);
  if (back != text) throw Failure(where_ + ": its tokens are not the text that they were made of");
  return tokens;
}

std::string ChatTokenizer::bytes(int64_t token) const {
  if (token < 0 || static_cast<size_t>(token) >= known_.size() || !known_[static_cast<size_t>(token)]) return "";
  const auto id = static_cast<uint64_t>(token);
  const auto found = library_.decode(id, id, /*skip_special_tokens=*/false);
  if (!found.ok()) throw Failure(where_ + ": cannot decode token " + std::to_string(token));
  return *found;
}

std::string ChatTokenizer::name(int64_t token) const {
  for (const auto& [text, id] : added_) {
    if (id == token) return text;
  }
  return bytes(token);
}

int64_t ChatTokenizer::id(const std::string& added) const {
  const auto found = added_.find(added);
  return found == added_.end() ? -1 : found->second;
}

std::string as_text(const std::string& bytes) {
  return Json::parse(Json(bytes).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

std::string TextStream::step(const std::string& bytes) {
  constexpr const char* kReplacement = "\xEF\xBF\xBD";
  pending_ += bytes;
  const std::string text = as_text(pending_);
  if (text.size() >= 3 && text.compare(text.size() - 3, 3, kReplacement) == 0) return "";
  pending_.clear();
  return text;
}

}  // namespace lfm2

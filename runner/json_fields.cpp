#include "json_fields.h"

#include <cmath>

#include "failure.h"

namespace lfm2 {
namespace {

constexpr int kDeepest = 64;

[[noreturn]] void refuse(const std::string& where, const std::string& what) { throw Failure(where + ": " + what); }

std::string named(const std::string& where, const char* name) { return where + ": " + name; }

template <typename Document>
Document parsed(const std::string& text, const std::string& where) {
  const auto shallow = [&where](int depth, typename Document::parse_event_t, Document&) {
    if (depth > kDeepest) refuse(where, "nested too deeply");
    return true;
  };
  Document document = Document::parse(text, shallow, /*allow_exceptions=*/false);
  if (document.is_discarded()) refuse(where, "not valid JSON");
  return document;
}

}  // namespace

Json parse_json(const std::string& text, const std::string& where) { return parsed<Json>(text, where); }
OrderedJson parse_ordered_json(const std::string& text, const std::string& where) { return parsed<OrderedJson>(text, where); }

const Json& field(const Json& object, const char* name, const std::string& where) {
  if (!object.is_object()) refuse(where, "expected an object");
  const auto found = object.find(name);
  if (found == object.end()) refuse(named(where, name), "missing");
  return *found;
}

std::string text_field(const Json& object, const char* name, const std::string& where) {
  const Json& value = field(object, name, where);
  if (!value.is_string()) refuse(named(where, name), "expected text");
  return value.get<std::string>();
}

int64_t whole(const Json& value, int64_t least, int64_t most, const std::string& where) {
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(most)
                                               : value.is_number_integer() && value.get<int64_t>() <= most;
  if (!fits || value.get<int64_t>() < least) {
    refuse(where, "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<int64_t>();
}

int64_t whole_field(const Json& object, const char* name, int64_t least, int64_t most, const std::string& where) {
  return whole(field(object, name, where), least, most, named(where, name));
}

const Json& list_field(const Json& object, const char* name, const std::string& where) {
  const Json& value = field(object, name, where);
  if (!value.is_array()) refuse(named(where, name), "expected a list");
  return value;
}

double real_field(const Json& object, const char* name, const std::string& where) {
  const Json& value = field(object, name, where);
  if (!value.is_number() || !std::isfinite(value.get<double>())) refuse(named(where, name), "expected a number");
  return value.get<double>();
}

bool flag_field(const Json& object, const char* name, const std::string& where) {
  const Json& value = field(object, name, where);
  if (!value.is_boolean()) refuse(named(where, name), "expected true or false");
  return value.get<bool>();
}

std::vector<int64_t> token_field(const Json& object, const char* name, int64_t vocab, const std::string& where) {
  std::vector<int64_t> tokens;
  for (const Json& value : list_field(object, name, where)) {
    tokens.push_back(whole(value, 0, vocab - 1, named(where, name)));
  }
  return tokens;
}

}  // namespace lfm2

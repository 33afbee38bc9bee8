// Reading fields of a JSON document that nobody vouches for: each is there and of its type and range, or a Failure
// names it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lfm2 {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // where the order of keys is somebody's choice

// Failure for anything but one JSON document; `where` begins every message.
Json parse_json(const std::string& text, const std::string& where);
OrderedJson parse_ordered_json(const std::string& text, const std::string& where);

const Json& field(const Json& object, const char* name, const std::string& where);
std::string text_field(const Json& object, const char* name, const std::string& where);
int64_t whole_field(const Json& object, const char* name, int64_t least, int64_t most, const std::string& where);
const Json& list_field(const Json& object, const char* name, const std::string& where);
double real_field(const Json& object, const char* name, const std::string& where);  // finite
bool flag_field(const Json& object, const char* name, const std::string& where);

// A list of token ids below `vocab`.
std::vector<int64_t> token_field(const Json& object, const char* name, int64_t vocab, const std::string& where);

// A whole number from `least` to `most`.
int64_t whole(const Json& value, int64_t least, int64_t most, const std::string& where);

}  // namespace lfm2

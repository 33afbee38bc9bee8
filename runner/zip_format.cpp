#include "zip_format.h"

#include <algorithm>

#include "failure.h"

namespace lfm2 {
namespace {

constexpr std::string_view kLocalSign("PK\3\4", 4), kLineSign("PK\1\2", 4), kEndSign("PK\5\6", 4);
constexpr std::string_view kEnd64Sign("PK\6\6", 4), kLocatorSign("PK\6\7", 4);
constexpr uint64_t kBig = 0xFFFFFFFF, kMany = 0xFFFF;   // in a field of 32 or 16 bits: look into the ZIP64 record
constexpr uint64_t kPlain = 20, kZip64 = 45, kUnix = 3;  // version needed, and the system that modes are of
constexpr uint64_t kUtf8 = 0x800, kDate = (1 << 5) | 1;  // 1980-01-01
constexpr uint64_t kMode = 0100644, kLink = 0120000, kKind = 0170000;
constexpr size_t kLine = 46, kEnd = 22, kEnd64 = 56, kLocator = 20;  // bytes of a record without what varies
constexpr uint64_t kMostEntries = 10'000, kMostDirectory = 16 << 20;

[[noreturn]] void refuse(const std::string& where, const std::string& what) { throw Failure(where + ": " + what); }

// A little-endian number.
std::string number(uint64_t value, int bytes) {
  std::string text;
  for (int byte = 0; byte < bytes; ++byte) text += static_cast<char>(value >> (8 * byte) & 0xFF);
  return text;
}

uint64_t number_at(std::string_view data, size_t at, int bytes) {
  uint64_t value = 0;
  for (int byte = bytes - 1; byte >= 0; --byte) value = value << 8 | static_cast<unsigned char>(data.at(at + static_cast<size_t>(byte)));
  return value;
}

uint64_t flags(const std::string& name) {
  return std::all_of(name.begin(), name.end(), [](char letter) { return static_cast<unsigned char>(letter) < 0x80; }) ? 0 : kUtf8;
}

// What the local header and the directory's line have in common.
std::string described(const ZipEntry& entry, bool wide, size_t extra) {
  const uint64_t size = std::min(entry.size, kBig);
  return number(wide ? kZip64 : kPlain, 2) + number(flags(entry.name), 2) + number(0, 2) + number(0, 2) + number(kDate, 2) + number(entry.crc, 4) +
         number(size, 4) + number(size, 4) + number(entry.name.size(), 2) + number(extra, 2);
}

std::string local_header(const ZipEntry& entry) {
  const bool wide = entry.size >= kBig;
  const std::string extra = wide ? number(1, 2) + number(16, 2) + number(entry.size, 8) + number(entry.size, 8) : "";
  return std::string(kLocalSign) + described(entry, wide, extra.size()) + entry.name + extra;
}

std::string directory_line(const ZipEntry& entry, uint64_t offset) {
  std::string wide;
  if (entry.size >= kBig) wide = number(entry.size, 8) + number(entry.size, 8);
  if (offset >= kBig) wide += number(offset, 8);
  const std::string extra = wide.empty() ? "" : number(1, 2) + number(wide.size(), 2) + wide;
  const uint64_t made = kUnix << 8 | (wide.empty() ? kPlain : kZip64);
  return std::string(kLineSign) + number(made, 2) + described(entry, !wide.empty(), extra.size()) + number(0, 6) + number(kMode << 16, 4) +
         number(std::min(offset, kBig), 4) + entry.name + extra;
}

std::string end_of(uint64_t count, uint64_t length, uint64_t start) {
  std::string record;
  if (count >= kMany || length >= kBig || start >= kBig) {
    record = std::string(kEnd64Sign) + number(kEnd64 - 12, 8) + number(kUnix << 8 | kZip64, 2) + number(kZip64, 2) + number(0, 8) + number(count, 8) +
             number(count, 8) + number(length, 8) + number(start, 8) + std::string(kLocatorSign) + number(0, 4) + number(start + length, 8) + number(1, 4);
  }
  const uint64_t few = std::min(count, kMany);
  return record + std::string(kEndSign) + number(0, 4) + number(few, 2) + number(few, 2) + number(std::min(length, kBig), 4) +
         number(std::min(start, kBig), 4) + number(0, 2);
}

struct Directory {
  uint64_t count, length, start;
};

Directory find_directory(std::string_view archive, const std::string& where) {
  if (archive.size() < kEnd) refuse(where, std::to_string(archive.size()) + " bytes; truncated, or no bundle");
  const std::string_view end = archive.substr(archive.size() - kEnd);
  if (end.substr(0, 4) != kEndSign) {
    const bool later = archive.substr(archive.size() - std::min<size_t>(archive.size(), 70'000)).find(kEndSign) != std::string_view::npos;
    refuse(where, std::string("does not end as an archive of `bundle` does: ") + (later ? "data after its end" : "truncated, or no bundle"));
  }
  if (number_at(end, 20, 2) != 0 || number_at(end, 4, 4) != 0 || number_at(end, 8, 2) != number_at(end, 10, 2)) {
    refuse(where, "has a comment or several disks; `bundle` writes neither");
  }
  const Directory found{number_at(end, 10, 2), number_at(end, 12, 4), number_at(end, 16, 4)};
  constexpr size_t before = kEnd + kLocator + kEnd64;
  if ((found.length != kBig && found.start != kBig && found.count != kMany) || archive.size() < before) return found;
  const std::string_view wide = archive.substr(archive.size() - before, kEnd64);
  if (wide.substr(0, 4) != kEnd64Sign) refuse(where, "its ZIP64 record is missing");
  return {number_at(wide, 32, 8), number_at(wide, 40, 8), number_at(wide, 48, 8)};
}

// One line of the directory. Refused by name is what an attacker would try; the comparison of all bytes sees the rest.
ZipEntry entry_of(std::string_view line, std::string_view name, std::string_view extra, const std::string& where) {
  ZipEntry entry;
  entry.name = name;
  const std::string called = shown(entry.name);
  const uint64_t mode = number_at(line, 38, 4) >> 16;
  entry.crc = static_cast<uint32_t>(number_at(line, 16, 4));
  entry.size = number_at(line, 24, 4);
  if ((number_at(line, 8, 2) & 1) != 0) refuse(where, called + " is encrypted");
  if (number_at(line, 10, 2) != 0 || number_at(line, 20, 4) != entry.size) refuse(where, called + " is compressed; a bundle stores its files as they are");
  if ((mode & kKind) == kLink) refuse(where, called + " is a symbolic link");
  if (mode != kMode || (!name.empty() && name.back() == '/')) refuse(where, called + " is no plain file");
  if (entry.size == kBig) {
    if (extra.size() < 12) refuse(where, called + " has no ZIP64 size");
    entry.size = number_at(extra, 4, 8);
  }
  return entry;
}

std::vector<ZipEntry> directory_entries(std::string_view data, uint64_t count, const std::string& where) {
  std::vector<ZipEntry> entries;
  for (; count > 0; --count) {
    if (data.size() < kLine) refuse(where, "its directory is cut short");
    const std::string_view line = data.substr(0, kLine);
    const uint64_t name = number_at(line, 28, 2), extra = number_at(line, 30, 2), whole = kLine + name + extra + number_at(line, 32, 2);
    if (data.size() < whole) refuse(where, "its directory is cut short");
    entries.push_back(entry_of(line, data.substr(kLine, name), data.substr(kLine + name, extra), where));
    data.remove_prefix(whole);
  }
  if (!data.empty()) refuse(where, "its directory has more than its entries");
  return entries;
}

}  // namespace

std::vector<ZipEntry> read_entries(std::string_view archive, const std::string& where) {
  const auto [count, length, start] = find_directory(archive, where);
  const uint64_t size = archive.size();
  if (count > kMostEntries || length > kMostDirectory || start > size || length > size - start) {
    refuse(where, "a directory of " + std::to_string(count) + " entries and " + std::to_string(length) + " bytes; no bundle has that");
  }
  if (const uint64_t rest = size - start - length; rest != kEnd && rest != kEnd + kLocator + kEnd64) {
    refuse(where, "its directory does not lie at its end; data was put before, behind or into it");
  }
  std::vector<ZipEntry> entries = directory_entries(archive.substr(start, length), count, where);
  uint64_t claimed = 0;
  for (const ZipEntry& entry : entries) {
    if (entry.size > size - claimed) {
      refuse(where, "its entries claim more bytes than the " + std::to_string(size) + " it has; truncated, or overlapping");
    }
    claimed += entry.size;
  }
  std::string lines;
  std::vector<std::string> headers;
  uint64_t offset = 0;
  for (const ZipEntry& entry : entries) {
    headers.push_back(local_header(entry));
    lines += directory_line(entry, offset);
    offset += headers.back().size() + entry.size;
  }
  const std::string tail = lines + end_of(entries.size(), lines.size(), offset);
  if (offset + tail.size() != size) {
    refuse(where, std::to_string(size) + " bytes, its entries make " + std::to_string(offset + tail.size()) + "; truncated, or data between entries");
  }
  uint64_t at = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (archive.substr(at, headers[i].size()) != headers[i]) refuse(where, shown(entries[i].name) + ": its header is not the one that `bundle` writes");
    entries[i].content = archive.substr(at + headers[i].size(), entries[i].size);
    at += headers[i].size() + entries[i].size;
  }
  if (offset != start || archive.substr(start) != tail) refuse(where, "its directory is not the one that `bundle` writes");
  return entries;
}

}  // namespace lfm2

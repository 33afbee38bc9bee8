"""The one way a bundle's ZIP archive is written, byte for byte; and reading, which accepts nothing else.

Entries are stored, not compressed, in the order given, dated 1980-01-01, mode 0644, without comments or extra fields
but ZIP64's, which are there only where a number does not fit. So the list of (name, size, CRC-32) decides every byte
that is not file content. A reader rebuilds those bytes from the central directory and compares: prepended, trailing,
hidden, overlapping or doubly described data has no place to be. Field layouts: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lfm2_export.errors import BundleError

ReadAt = Callable[[int, int], bytes]  # (offset, length) → exactly that many bytes

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_LOCAL_SIGN, _CENTRAL_SIGN, _END_SIGN = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64_SIGN, _LOCATOR_SIGN = b"PK\x06\x06", b"PK\x06\x07"
_BIG, _MANY = 0xFFFFFFFF, 0xFFFF  # in a field of 32 or 16 bits: look into the ZIP64 record
_PLAIN, _ZIP64, _UNIX = 20, 45, 3  # version needed, and the system that modes are of
_UTF8 = 0x800
_DATE = (1 << 5) | 1  # 1980-01-01, the first day that the format knows
_MODE = (stat.S_IFREG | 0o644) << 16
_MAX_ENTRIES = 10_000
_MAX_DIRECTORY = 16 << 20


class Entry(NamedTuple):
    """One stored file: its size in bytes and CRC-32."""

    name: str
    size: int
    crc: int


class Layout(NamedTuple):
    """The place of everything in an archive."""

    headers: list[tuple[int, bytes]]  # each entry's local header and its offset; the content follows at once
    tail: bytes  # central directory and end records
    tail_at: int

    @property
    def size(self) -> int:
        return self.tail_at + len(self.tail)


def lay_out(entries: Iterable[Entry]) -> Layout:
    """Return every byte of the archive that is not file content."""
    headers, central, offset = [], [], 0
    for entry in entries:
        local = _local(entry)
        headers.append((offset, local))
        central.append(_directory_line(entry, offset))
        offset += len(local) + entry.size
    directory = b"".join(central)
    return Layout(headers, directory + _end(len(central), len(directory), offset), offset)


def read_entries(read: ReadAt, size: int, where: str) -> tuple[list[Entry], Layout]:
    """The entries of an archive of `size` bytes, and the layout that all but their content was compared with.

    Raises BundleError, one line, for whatever `lay_out` would not have written.
    """
    count, length, start = _find_directory(read, size, where)
    if count > _MAX_ENTRIES or length > _MAX_DIRECTORY or start + length > size:
        raise BundleError(f"{where}: a directory of {count} entries and {length} bytes; no bundle has that")
    if start + length not in (size - _END.size, size - _END.size - _LOCATOR.size - _END64.size):
        raise BundleError(f"{where}: its directory does not lie at its end; data was put before, behind or into it")
    entries = _parse_directory(read(start, length), count, where)
    if sum(entry.size for entry in entries) > size:
        raise BundleError(f"{where}: its entries claim more bytes than the {size} it has; truncated, or overlapping")
    layout = lay_out(entries)
    if layout.size != size:
        raise BundleError(f"{where}: {size} bytes, its entries make {layout.size}; truncated, or data between entries")
    for entry, (offset, header) in zip(entries, layout.headers, strict=True):
        if read(offset, len(header)) != header:
            raise BundleError(f"{where}: {entry.name!r:.120}: its header is not the one that `bundle` writes")
    if layout.tail_at != start or read(start, len(layout.tail)) != layout.tail:
        raise BundleError(f"{where}: its directory is not the one that `bundle` writes")
    return entries, layout


def _local(entry: Entry) -> bytes:
    name, extra = entry.name.encode("utf-8"), b""
    size, needed = entry.size, _PLAIN
    if entry.size >= _BIG:
        extra, size, needed = struct.pack("<2H2Q", 1, 16, entry.size, entry.size), _BIG, _ZIP64
    flags = _flags(entry.name)
    fixed = _LOCAL.pack(_LOCAL_SIGN, needed, flags, 0, 0, _DATE, entry.crc, size, size, len(name), len(extra))
    return fixed + name + extra


def _directory_line(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode("utf-8")
    wide = [entry.size, entry.size] if entry.size >= _BIG else []
    wide += [offset] if offset >= _BIG else []
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    needed, flags, size = _ZIP64 if wide else _PLAIN, _flags(entry.name), min(entry.size, _BIG)
    fixed = (_CENTRAL_SIGN, _UNIX << 8 | needed, needed, flags, 0, 0, _DATE, entry.crc, size, size, len(name))
    return _CENTRAL.pack(*fixed, len(extra), 0, 0, 0, _MODE, min(offset, _BIG)) + name + extra


def _end(count: int, length: int, start: int) -> bytes:
    record = b""
    if count >= _MANY or length >= _BIG or start >= _BIG:
        made = _UNIX << 8 | _ZIP64
        record = _END64.pack(_END64_SIGN, _END64.size - 12, made, _ZIP64, 0, 0, count, count, length, start)
        record += _LOCATOR.pack(_LOCATOR_SIGN, 0, start + length, 1)
    few = min(count, _MANY)
    return record + _END.pack(_END_SIGN, 0, 0, few, few, min(length, _BIG), min(start, _BIG), 0)


def _flags(name: str) -> int:
    return 0 if name.isascii() else _UTF8


def _find_directory(read: ReadAt, size: int, where: str) -> tuple[int, int, int]:
    """(entries, length, offset) of the central directory."""
    if size < _END.size:
        raise BundleError(f"{where}: {size} bytes; truncated, or no bundle")
    end = read(size - _END.size, _END.size)
    sign, disk, first_disk, here, count, length, start, comment = _END.unpack(end)
    if sign != _END_SIGN:
        last = read(max(0, size - 70_000), min(size, 70_000))
        why = "data after its end" if _END_SIGN in last else "truncated, or no bundle"
        raise BundleError(f"{where}: does not end as an archive of `bundle` does: {why}")
    if comment or disk or first_disk or here != count:
        raise BundleError(f"{where}: has a comment or several disks; `bundle` writes neither")
    before = _END.size + _LOCATOR.size + _END64.size
    if (_BIG not in (length, start) and count != _MANY) or size < before:
        return count, length, start
    wide = _END64.unpack(read(size - before, _END64.size))
    if wide[0] != _END64_SIGN:
        raise BundleError(f"{where}: its ZIP64 record is missing")
    return wide[7], wide[8], wide[9]


def _parse_directory(data: bytes, count: int, where: str) -> list[Entry]:
    entries, at = [], 0
    for _ in range(count):
        if len(data) - at < _CENTRAL.size:
            raise BundleError(f"{where}: its directory is cut short")
        fields = _CENTRAL.unpack_from(data, at)
        at += _CENTRAL.size
        name_length, extra_length, comment = fields[10:13]
        raw, extra = data[at : at + name_length], data[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment
        entries.append(_entry(fields, raw, extra, where))
    if at != len(data):
        raise BundleError(f"{where}: its directory has more than its entries")
    return entries


def _entry(fields: tuple[int, ...], raw: bytes, extra: bytes, where: str) -> Entry:
    """One line of the directory. Refused by name is what an attacker would try; `lay_out` sees the rest."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{where}: an entry's name is not UTF-8") from error
    flags, method, crc, packed, size, mode = fields[3], fields[4], fields[7], fields[8], fields[9], fields[15] >> 16
    if flags & 1:
        raise BundleError(f"{where}: {name!r:.120} is encrypted")
    if method or packed != size:
        raise BundleError(f"{where}: {name!r:.120} is compressed; a bundle stores its files as they are")
    if stat.S_ISLNK(mode):
        raise BundleError(f"{where}: {name!r:.120} is a symbolic link")
    if name.endswith("/") or mode != _MODE >> 16:
        raise BundleError(f"{where}: {name!r:.120} is no plain file")
    if size == _BIG:
        if len(extra) < 12:
            raise BundleError(f"{where}: {name!r:.120} has no ZIP64 size")
        size = struct.unpack_from("<Q", extra, 4)[0]
    return Entry(name, size, crc)

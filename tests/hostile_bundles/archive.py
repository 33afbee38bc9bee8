"""The archive's structure."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_bundles import archived, described

from hostile_bundles.spoil import HOSTILE, Files, Spoil, without
from lfm2_export.bundle import zip_format
from lfm2_export.bundle.archive import measure


def bytes_of(change: Callable[[bytearray], bytes | None]) -> Spoil:
    """Edits the good archive's bytes, in place or by returning others."""

    def spoil(files: Files, place: Path) -> Path:
        path = archived(files, place / "b.zip")
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data) or bytes(data))
        return path

    return spoil


def patch(sign: bytes, offset: int, value: bytes, number: int = 0) -> Spoil:
    """Overwrites a field of the `number`th record that begins with `sign`."""

    def change(data: bytearray) -> None:
        at = -1
        for _ in range(number + 1):
            at = data.index(sign, at + 1)
        data[at + offset : at + offset + len(value)] = value

    return bytes_of(change)


def counted(more: int) -> Spoil:
    """Claims more entries, or fewer, than there are."""

    def change(data: bytearray) -> None:
        count = struct.unpack_from("<H", data, len(data) - 12)[0] + more
        struct.pack_into("<2H", data, len(data) - 14, count, count)

    return bytes_of(change)


def named(name: str) -> Spoil:
    """Adds a file of that name, listed in bundle.json like any other."""
    return lambda files, place: archived(described({**without(files, "bundle.json"), name: b"x"}), place / "b.zip")


def twice(first: str, second: str) -> Spoil:
    """Two entries whose names are the same, or the same to some systems."""

    def spoil(files: Files, place: Path) -> Path:
        names = [*files, first, second]
        contents = [*files.values(), b"x", b"y"]
        found = [measure(data) for data in contents]
        layout = zip_format.lay_out(
            zip_format.Entry(name, one.size, one.crc) for name, one in zip(names, found, strict=True)
        )
        pieces = [header + data for (_, header), data in zip(layout.headers, contents, strict=True)]
        (place / "b.zip").write_bytes(b"".join(pieces) + layout.tail)
        return place / "b.zip"

    return spoil


def zipped(method: int, **kinds: Any) -> Spoil:
    """What Python's own zipfile makes of the files."""

    def spoil(files: Files, place: Path) -> Path:
        with zipfile.ZipFile(place / "b.zip", "w", method) as archive:
            for name, data in {**files, **kinds}.items():
                archive.writestr(zipfile.ZipInfo(name), data, method)
        return place / "b.zip"

    return spoil


def overlapping(files: Files, place: Path) -> Path:
    """Two directory lines that point at one content, as zip bombs do to repeat it."""
    path = archived(files, place / "b.zip")
    data = path.read_bytes()
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 1)
    offset = data[first + 42 : first + 46]
    path.write_bytes(data[: second + 42] + offset + data[second + 46 :])
    return path


def gap(files: Files, place: Path) -> Path:
    """Bytes between two entries that nothing describes, with every offset after them right."""
    path = archived(files, place / "b.zip")
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x03\x04", 4)
    data[second:second] = b"hidden"
    at = data.index(b"PK\x01\x02")
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 42 : at + 46] = struct.pack("<L", struct.unpack_from("<L", data, at + 42)[0] + 6)
    data[-6:-2] = struct.pack("<L", struct.unpack_from("<L", data, len(data) - 6)[0] + 6)
    path.write_bytes(data)
    return path


def zip64_claim(files: Files, place: Path) -> Path:
    """A size of 2^63 in a ZIP64 field."""
    path = archived(files, place / "b.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    length = struct.unpack_from("<H", data, at + 28)[0]
    data[at + 20 : at + 28] = b"\xff" * 8
    data[at + 30 : at + 32] = struct.pack("<H", 20)
    data[at + 46 + length : at + 46 + length] = struct.pack("<2H2Q", 1, 16, 1 << 63, 1 << 63)
    data[-10:-6] = struct.pack("<L", struct.unpack_from("<L", data, len(data) - 10)[0] + 20)
    path.write_bytes(data)
    return path


def tar(files: Files, place: Path) -> Path:
    with tarfile.open(place / "b.zip", "w") as archive:
        for name, data in files.items():
            (info := tarfile.TarInfo(name)).size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return place / "b.zip"


LOCAL, LINE, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
HOSTILE |= {
    "empty file": (bytes_of(lambda d: d.clear()), "truncated, or no bundle"),
    "no entries": (lambda f, p: archived({}, p / "b.zip"), "holds no bundle.json"),
    "noise": (bytes_of(lambda d: bytes(range(256)) * 40), "truncated, or no bundle"),
    "a tar file": (tar, "truncated, or no bundle"),
    "last byte missing": (bytes_of(lambda d: bytes(d[:-1])), "does not end as"),
    "one byte after the end": (bytes_of(lambda d: bytes(d) + b"x"), "data after its end"),
    "a second archive after the first": (bytes_of(lambda d: bytes(d) * 2), "does not lie at its end"),
    "data before the beginning": (bytes_of(lambda d: b"#!/bin/sh\n" + bytes(d)), "does not lie at its end"),
    "a comment": (bytes_of(lambda d: bytes(d[:-2]) + b"\x02\0hi"), "does not end as"),
    "a comment that claims to be there": (patch(END, 20, b"\x05\0"), "comment"),
    "several disks": (patch(END, 4, b"\x01\0"), "several disks"),
    "a directory of 65534 entries": (patch(END, 8, b"\xfe\xff\xfe\xff"), "no bundle has that"),
    "one entry more than there are": (counted(1), "cut short"),
    "one entry less than there are": (counted(-1), "more than its entries"),
    "a directory beyond the end": (patch(END, 16, b"\xf0\xff\xff\xff"), "no bundle has that"),
    "a directory in ZIP64 that is missing": (patch(END, 16, b"\xff\xff\xff\xff"), "ZIP64 record is missing"),
    "an absurd size": (patch(LINE, 20, b"\xf0\xff\xff\xff" * 2), "claim more bytes"),
    "a size of 2^63": (zip64_claim, "claim more bytes"),
    "a ZIP64 size without its field": (patch(LINE, 20, b"\xff" * 8), "no ZIP64 size"),
    "compressed": (zipped(zipfile.ZIP_DEFLATED), "compressed"),
    "a zip bomb": (zipped(zipfile.ZIP_DEFLATED, zeros=b"\0" * (8 << 20)), "compressed"),
    "stored, but by another program": (zipped(zipfile.ZIP_STORED), "no plain file"),
    "overlapping entries": (overlapping, "its directory is not"),
    "a gap between entries": (gap, "data between entries"),
    "encrypted": (patch(LINE, 8, b"\x01\0"), "encrypted"),
    "a data descriptor": (patch(LOCAL, 6, b"\x08\0"), "its header is not"),
    "two dates": (patch(LOCAL, 12, b"\x99\x50"), "its header is not"),
    "another date": (patch(LINE, 14, b"\x99\x50"), "its directory is not"),
    "another name in the local header": (patch(LOCAL, 30, b"evil", 3), "its header is not"),
    "another checksum in the local header": (patch(LOCAL, 14, b"\0\0\0\0", 2), "its header is not"),
    "a symbolic link": (patch(LINE, 38, struct.pack("<L", 0o120777 << 16), 2), "symbolic link"),
    "a folder's mode": (patch(LINE, 38, struct.pack("<L", 0o040755 << 16), 2), "no plain file"),
    "an executable": (patch(LINE, 38, struct.pack("<L", 0o100755 << 16), 2), "no plain file"),
    "setuid": (patch(LINE, 38, struct.pack("<L", 0o104644 << 16), 2), "no plain file"),
    "an attribute of DOS": (patch(LINE, 38, b"\x01\0", 2), "its directory is not"),
    "a name that is not UTF-8": (patch(LINE, 46, b"\xff\xfe", 2), "not UTF-8"),
    "a name twice": (twice("extra", "extra"), "same name"),
    "a name twice by case": (twice("Extra", "eXTRA"), "same name"),
    "bundle.json twice": (twice("bundle.json", "z"), "same name"),
    "a file that is also a folder": (twice("extra", "extra/inner"), "both a file and the folder"),
    "a path that climbs out": (named("../../etc/cron.d/evil"), "leaves the folder"),
    "a path that climbs in the middle": (named("a/../../b"), "leaves the folder"),
    "an absolute path": (named("/etc/passwd"), "leaves the folder"),
    "a drive": (named("C:evil"), "leaves the folder"),
    "backslashes": (named("..\\evil"), "leaves the folder"),
    "an empty part of a path": (named("a//b"), "no plain file name"),
    "a dot for a path": (named("a/./b"), "no plain file name"),
    "a trailing dot": (named("model.pte."), "no plain file name"),
    "a device of Windows": (named("con.json"), "no plain file name"),
    "a wildcard": (named("mod*l"), "no plain file name"),
    "a zero byte in a name": (named("model\0.pte"), "do not show"),
    "text that runs backwards": (named("evil\u202eetp.exe"), "do not show"),
    "a letter and its accent apart": (named("e\u0301"), "several spellings"),
    "a name of 300 letters": (named("x" * 300), "too long"),
    "a file that nobody lists": (lambda f, p: archived({**f, "z": b""}, p / "b.zip"), "not those that"),
    "a listed file missing": (lambda f, p: archived(without(f, "model.pte"), p / "b.zip"), "not those that"),
    "bundle.json not the first": (lambda f, p: archived(dict(sorted(f.items(), reverse=True)), p / "b.zip"), "order"),
    "no bundle.json": (lambda f, p: archived(without(f, "bundle.json"), p / "b.zip"), "holds no bundle.json"),
}  # fmt: skip

"""Writing files as one archive: what goes in is measured first, and measured again while it is written."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lfm2_export.bundle.checksums import CHUNK, Sums, sums
from lfm2_export.bundle.containers import open_container
from lfm2_export.bundle.description import BUNDLE, KIND, MAX_BYTES, parse_description
from lfm2_export.bundle.zip_format import Entry, Layout, lay_out
from lfm2_export.errors import UsageError
from lfm2_export.files import FileKind, staged_file, staged_folder

Content = bytes | Path


def _check_ours(path: Path) -> None:
    with open_container(path) as container:
        parse_description(container.read(BUNDLE, MAX_BYTES), f"{path}: {BUNDLE}")


ARCHIVE = FileKind("bundle", _check_ours)


def measure(content: Content) -> Sums:
    """Size and checksums of one file. UsageError when it cannot be read."""
    return sums(_pieces(content))


def plan(measured: Mapping[str, Sums]) -> Layout:
    """The archive of these files, in their order."""
    return lay_out(Entry(name, found.size, found.crc) for name, found in measured.items())


def chunks(contents: Mapping[str, Content], measured: Mapping[str, Sums], layout: Layout) -> Iterator[memoryview]:
    """The archive from front to back. UsageError for a file that is no longer what was measured."""
    for (_, header), (name, found) in zip(layout.headers, measured.items(), strict=True):
        yield memoryview(header)
        yield from _checked(name, contents[name], found)
    yield memoryview(layout.tail)


def write_file(data: Iterator[memoryview], path: Path, force: bool = False) -> None:
    """Write the archive, whole or not at all. UsageError when the system refuses, or something else has the name."""
    with staged_file(path, force, ARCHIVE) as new:
        _write(data, new)


def write_folder(
    contents: Mapping[str, Content],
    measured: Mapping[str, Sums],
    output: Path,
    force: bool,
    sources: Iterable[Path] = (),
) -> None:
    """Write the files as they are into a folder, whole or not at all. UsageError as above."""
    with staged_folder(output, force, KIND, sources) as folder:
        for name, found in measured.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(_checked(name, contents[name], found), path)


def _write(data: Iterator[memoryview], path: Path) -> None:
    with path.open("xb") as file:
        for piece in data:
            file.write(piece)


def _checked(name: str, content: Content, found: Sums) -> Iterator[memoryview]:
    """The file's bytes; UsageError at their end if they are not the ones measured."""
    crc = size = 0
    for piece in _pieces(content):
        crc, size = zlib.crc32(piece, crc), size + len(piece)
        yield piece
    if (size, crc) != (found.size, found.crc):
        raise UsageError(f"{name} changed while it was packed; try again")


def _pieces(content: Content) -> Iterator[memoryview]:
    if isinstance(content, bytes):
        yield memoryview(content)
        return
    buffer = memoryview(bytearray(CHUNK))
    try:
        with content.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        raise UsageError(f"{content}: cannot be read: {error.strerror}") from error

"""An archive in numbered parts, for stores that limit a file's size (Play asset packs: 1.5 GB).

`NAME.zip.001`, `.002`, … are slices of the archive: one after the other they are the archive, byte for byte. Beside
them `parts.json` says how many there are. It is written last, and the folder gets its name only then, so an interrupted
run leaves a hidden folder, and the next one goes on in there: what it finds is compared with what it would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from lfm2_export.artifact.strict_json import check_version, parse_json
from lfm2_export.errors import BundleError, UsageError
from lfm2_export.files import FolderKind, resumed_folder

INDEX = "parts.json"
SCHEMA_VERSION = 1
_MAX_PARTS = 999
_MAX_INDEX = 1 << 20
_LEAST = 1000  # bytes of a part; less is a misunderstood unit


def part_names(archive: str, size: int, part_size: int) -> list[str]:
    """The names of the parts. UsageError for a part size that makes too many."""
    count = -(-size // part_size) if part_size >= _LEAST else _MAX_PARTS + 1
    if count > _MAX_PARTS:
        raise UsageError(f"--split {part_size} bytes: {size} bytes would need more than {_MAX_PARTS} parts")
    return [f"{archive}.{number:03}" for number in range(1, count + 1)]


def write_parts(
    chunks: Iterator[memoryview],
    size: int,
    part_size: int,
    output: Path,
    archive: str,
    force: bool,
    sources: Iterable[Path] = (),
) -> int:
    """Write the archive's `size` bytes as the folder `output`; returns how many of them were there already.

    Whatever stops it (a full disk, the user), what was written so far stays in `.OUTPUT.partial` for the next run.
    """
    names = part_names(archive, size, part_size)
    with resumed_folder(output, force, KIND, sources) as staging:
        for stray in staging.iterdir():
            if stray.name not in names or stray.is_symlink():
                stray.unlink()
        kept = _write(chunks, [staging / name for name in names], part_size)
        (staging / INDEX).write_bytes(_index(archive, size, part_size).encode())
    return kept


def find_parts(folder: Path) -> list[Path]:
    """The parts that the folder's `parts.json` lists, in order.

    BundleError for an index that is not what `write_parts` writes, a part that is missing or of another size, and
    anything else in the folder.
    """
    paths, size, part_size = _read_index(folder)
    for number, path in enumerate(paths):
        wanted = min(part_size, size - number * part_size)
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: missing; there are {len(paths)} parts")
        if path.stat().st_size != wanted:
            raise BundleError(f"{path}: {path.stat().st_size} bytes, expected {wanted}")
    if strange := {path.name for path in folder.iterdir()} - {INDEX, *(path.name for path in paths)}:
        raise BundleError(f"{folder / min(strange)}: not one of the {len(paths)} parts; remove it")
    return paths


def _read_index(folder: Path) -> tuple[list[Path], int, int]:
    """The parts that should be there, the archive's bytes and a part's."""
    where = folder / INDEX
    if where.stat().st_size > _MAX_INDEX:
        raise BundleError(f"{where}: larger than {_MAX_INDEX} bytes, that is no list of parts")
    data = where.read_bytes()
    document = parse_json(data, str(where))
    check_version(document, SCHEMA_VERSION, str(where))
    archive, size, part_size = (document.get(key) for key in ("archive", "size", "part_size"))
    if not isinstance(archive, str) or type(size) is not int or type(part_size) is not int:
        raise BundleError(f"{where}: archive, size or part_size is missing")
    if "/" in archive or "\\" in archive or not part_size > 0 or not 0 < size <= part_size * _MAX_PARTS:
        raise BundleError(f"{where}: an archive {archive!r:.120} of {size} bytes in parts of {part_size} is impossible")
    if data != _index(archive, size, part_size).encode():
        raise BundleError(f"{where}: not as `bundle --split` writes it")
    return [folder / name for name in part_names(archive, size, max(part_size, _LEAST))], size, part_size


def _listed(folder: Path) -> set[str]:
    if not (folder / INDEX).is_file():
        raise BundleError(f"it has no {INDEX}")
    return {INDEX, *(path.name for path in _read_index(folder)[0])}


KIND = FolderKind("bundle --split", _listed)


def parts_beside(first: Path) -> list[Path]:
    """Return `NAME.zip.001` and those that follow it, where there is no index."""
    paths = [first]
    while (following := first.with_suffix(f".{len(paths) + 1:03}")).is_file() and len(paths) < _MAX_PARTS:
        paths.append(following)
    return paths


def _write(chunks: Iterator[memoryview], paths: list[Path], part_size: int) -> int:
    """Each part is left as it is up to the first difference, and written from there on."""
    kept = at = 0
    with ExitStack() as stack:
        file: IO[bytes] | None = None
        for chunk in chunks:
            while len(chunk):
                number, within = divmod(at, part_size)
                if within == 0 or file is None:
                    file = stack.enter_context(_open(paths[number]))
                piece, chunk = chunk[: part_size - within], chunk[part_size - within :]
                kept += _put(file, piece)
                at += len(piece)
                if at % part_size == 0:
                    _close(file)
        if file is not None and not file.closed:
            _close(file)
    return kept


def _open(path: Path) -> IO[bytes]:
    return path.open("r+b" if path.exists() else "x+b", buffering=0)


def _put(file: IO[bytes], piece: memoryview) -> int:
    start = file.tell()
    found = file.read(len(piece))
    if found == piece:
        return len(piece)
    same = next((i for i, (a, b) in enumerate(zip(found, piece, strict=False)) if a != b), len(found))
    file.seek(start + same)
    file.truncate()
    rest = piece[same:]
    while len(rest):
        rest = rest[file.write(rest) :]
    return same


def _close(file: IO[bytes]) -> None:
    file.truncate()  # of an earlier run with larger parts
    file.close()


def _index(archive: str, size: int, part_size: int) -> str:
    count = -(-size // part_size)
    document = {"schema_version": SCHEMA_VERSION, "archive": archive, "size": size, "part_size": part_size}
    return (
        json.dumps({**document, "parts": [f"{archive}.{number:03}" for number in range(1, count + 1)]}, indent=2) + "\n"
    )

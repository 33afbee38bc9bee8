"""What a bundle's files lie in: an archive, its parts, or a folder. All are read through the same few methods."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm2_export.artifact.folder import MANIFEST
from lfm2_export.artifact.names import clash, unsafe
from lfm2_export.bundle import parts
from lfm2_export.bundle.checksums import CHUNK
from lfm2_export.bundle.description import BUNDLE
from lfm2_export.bundle.joined_files import JoinedFiles
from lfm2_export.bundle.zip_format import read_entries
from lfm2_export.errors import BundleError, UsageError

_MAX_FILES = 10_000


class Container(ABC):
    """A bundle's files: `sizes` in order, in bytes; `form` says in what they lie. Every name is a safe one."""

    form: str

    def __init__(self, where: Path, names: list[str]) -> None:
        """BundleError for a name that could leave the folder it is unpacked into, or that is there twice."""
        self.where = where
        for name in names:
            if (why := unsafe(name)) is not None:
                raise BundleError(f"{where}: file name {name!r:.200} {why}")
        if (why := clash(names)) is not None:
            raise BundleError(f"{where}: {why}")
        self.sizes: dict[str, int] = {}

    def crc(self, name: str) -> int | None:
        """The CRC-32 that the container states; None for one that states none."""
        return None

    @abstractmethod
    def chunks(self, name: str) -> Iterator[memoryview]:
        """The file's bytes. Each piece is gone when the next one is asked for."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole small file. BundleError when it is missing or larger than `limit` bytes."""
        if name not in self.sizes:
            raise BundleError(f"{self.where}: holds no {name}")
        if self.sizes[name] > limit:
            raise BundleError(f"{self.where}: {name}: larger than {limit} bytes; that is not what its name says")
        return b"".join(bytes(chunk) for chunk in self.chunks(name))


class Archive(Container):
    """Files within a run of bytes: one file on the disk, or several."""

    def __init__(self, where: Path, data: JoinedFiles, form: str) -> None:
        entries, layout = read_entries(data.read, data.size, str(where))
        super().__init__(where, [entry.name for entry in entries])
        self.form, self._data = form, data
        self.sizes = {entry.name: entry.size for entry in entries}
        self._crcs = {entry.name: entry.crc for entry in entries}
        self._starts = {e.name: at + len(header) for e, (at, header) in zip(entries, layout.headers, strict=True)}

    def crc(self, name: str) -> int | None:
        return self._crcs[name]

    def chunks(self, name: str) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(CHUNK))
        at, end = self._starts[name], self._starts[name] + self.sizes[name]
        while at < end:
            chunk = buffer[: min(CHUNK, end - at)]
            self._data.read_into(at, chunk)
            yield chunk
            at += len(chunk)


class Folder(Container):
    """An unpacked bundle, or an artifact. Links and anything else but files and folders are refused."""

    form = "folder"

    def __init__(self, where: Path) -> None:
        found = dict(sorted(_walk(where)))
        super().__init__(where, list(found))
        self.sizes = found

    def chunks(self, name: str) -> Iterator[memoryview]:
        with JoinedFiles([self.where / name]) as data:
            if data.size != self.sizes[name]:
                raise BundleError(f"{self.where / name}: changed while it was read")
            buffer = memoryview(bytearray(min(CHUNK, data.size)))
            for at in range(0, data.size, CHUNK):
                chunk = buffer[: min(CHUNK, data.size - at)]
                data.read_into(at, chunk)
                yield chunk


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """The container at `path`: an archive, a folder of parts, the first of them, or a folder with the files.

    UsageError for a path with nothing of that kind, BundleError for one that is damaged or forged.
    """
    if path.is_dir() and (path / parts.INDEX).is_file():
        files, form = parts.find_parts(path), "parts"
    elif path.is_dir():
        if not any((path / name).is_file() for name in (BUNDLE, MANIFEST)):
            raise UsageError(f"{path}: neither a bundle nor an artifact: no {BUNDLE}, {MANIFEST} or {parts.INDEX}")
        yield Folder(path)
        return
    elif path.is_file():
        first = path.suffix == ".001"
        files, form = (parts.parts_beside(path), "parts") if first else ([path], "archive")
    else:
        raise UsageError(f"{path}: no such file or folder")
    with JoinedFiles(files) as data:
        yield Archive(path, data, form)


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """(name, size) of every file below."""
    count = 0
    pending = [root]
    try:
        while pending:
            for item in os.scandir(pending.pop()):
                count += 1
                if count > _MAX_FILES:
                    raise BundleError(f"{root}: more than {_MAX_FILES} files; no bundle has that")
                if item.is_symlink():
                    raise BundleError(f"{item.path}: a symbolic link; a bundle holds the files themselves")
                if item.is_dir():
                    pending.append(Path(item.path))
                elif item.is_file():
                    yield Path(item.path).relative_to(root).as_posix(), item.stat().st_size
                else:
                    raise BundleError(f"{item.path}: neither a file nor a folder")
    except OSError as error:
        raise BundleError(f"{error.filename or root}: cannot be read: {error.strerror}") from error

"""One run of bytes that lies in one file, or in several one after the other: an archive, whole or in parts."""

from __future__ import annotations

import bisect
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import TracebackType

from lfm2_export.errors import BundleError


class JoinedFiles:
    """Reads at any offset. A context manager: the files stay open in between."""

    def __init__(self, paths: list[Path]) -> None:
        self._stack = ExitStack()
        try:
            self._files = [self._stack.enter_context(path.open("rb", buffering=0)) for path in paths]
        except OSError as error:
            self._stack.close()
            raise BundleError(f"{error.filename}: cannot be read: {error.strerror}") from error
        sizes = [path.stat().st_size for path in paths]
        self._starts = [0, *accumulate(sizes)]
        self._where = paths[0]

    @property
    def size(self) -> int:
        return self._starts[-1]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on. BundleError at the end of the data, or when the system cannot read."""
        filled = 0
        while filled < len(buffer):
            number = bisect.bisect_right(self._starts, offset + filled) - 1
            if number >= len(self._files):
                raise BundleError(f"{self._where}: truncated at byte {self.size}")
            file, within = self._files[number], offset + filled - self._starts[number]
            end = min(len(buffer), filled + self._starts[number + 1] - self._starts[number] - within)
            try:
                file.seek(within)
                count = file.readinto(buffer[filled:end])
            except OSError as error:
                raise BundleError(f"{self._where}: cannot be read: {error.strerror}") from error
            if not count:
                raise BundleError(f"{self._where}: became shorter while it was read")
            filled += count

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on."""
        data = bytearray(length if offset + length <= self.size else 0)
        if len(data) != length:
            raise BundleError(f"{self._where}: truncated at byte {self.size}")
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def __enter__(self) -> JoinedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

"""Puts a model's packed weights onto huge pages, where Linux can (6.1 and later).

A decode step reads every weight once, in pages of 4 KB that the processor must look up one by one; on a virtual
machine each look-up walks two page tables. On 2 MB pages the same step took a quarter less time (350M, int4). Runtimes
allocate the memory themselves, so it is moved afterwards: in the background, while the model already answers.
See madvise(2), MADV_COLLAPSE. Anywhere else nothing happens, and only speed depends on it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

_PAGE = 2 << 20  # bytes; what x86-64 and (with 4 KB pages) ARM64 call huge
_MADV_COLLAPSE = 25  # asm-generic/mman-common.h
_MAPS = Path("/proc/self/maps")
_NAME = "huge pages"  # of the threads that move

Range = tuple[int, int]  # addresses, the second one exclusive


class HugePages:
    """Remembers what memory there was before a model was loaded, so that only the model's own is moved."""

    def __init__(self) -> None:
        self._before = _anonymous()

    def adopt(self) -> threading.Thread:
        """Start moving all that was mapped since. The thread ends by itself; nobody needs to wait for it."""
        ranges = [part for whole in _anonymous() for part in _without(whole, self._before)]
        thread = threading.Thread(target=_collapse, args=(ranges,), daemon=True, name=_NAME)
        thread.start()
        return thread


def wait() -> None:
    """Until all that is being moved has been: where free memory lies in pieces that takes seconds, and slows decode."""
    for thread in threading.enumerate():
        if thread.name == _NAME:
            thread.join()


def _collapse(ranges: list[Range]) -> None:
    if not ranges:  # anywhere but on Linux; Windows has no library without a name
        return
    libc = ctypes.CDLL(None)
    for start, end in ranges:
        first, last = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
        if first < last:
            # a page that cannot be moved (unmapped by now, none free, an older kernel) stays as it is
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_COLLAPSE)


def _anonymous() -> list[Range]:
    """Private writable memory behind no file, in order of address; none where there is no /proc."""
    if sys.platform != "linux" or not _MAPS.exists():
        return []
    found = []
    for line in _MAPS.read_text().splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = addresses.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _without(whole: Range, others: list[Range]) -> list[Range]:
    """The parts of `whole` that no other range covers; `others` in order of address."""
    start, end = whole
    parts = []
    for low, high in others:
        if high <= start or low >= end:
            continue
        if start < low:
            parts.append((start, low))
        start = max(start, high)
    return [*parts, (start, end)] if start < end else parts

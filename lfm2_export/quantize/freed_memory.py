"""Lets freed tensors go back to the system, where the C library would keep them.

glibc keeps freed blocks of up to 32 MB for later, in pieces between those still in use. Quantizing layer by layer frees
many times what it keeps, and the process grew by 0.28 GB a layer at the 1.2B shape, of which 0.11 were in use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_BYTES = 1 << 20  # of a block that is mapped by itself; setting it ends glibc's habit of raising it
SMALL = 1 << 18  # a quarter of that: 0.6 GB less at the 350M shape, and a quantization takes 8 s instead of 2
_FREE_ABOVE = 1 << 17  # bytes that may lie free at the end of the heap: glibc's own choice
# while blocks are used again: two rows of logits in float64 at a vocabulary of 128,000, and 256 MB in all. Larger
# blocks among them leave gaps that nothing fits: up to 0.2 GB at a vocabulary of 65,536, more with every token
_KEPT, _KEPT_IN_ALL = 1 << 21, 1 << 28


def return_at_once(block: int = _BYTES) -> None:
    """Return what was freed so far and, from now on and in the whole process, what will be, in blocks of that size.

    See malloc_trim(3) and mallopt(3). Nothing happens with another C library than glibc.
    """
    _set(block, _FREE_ABOVE)


@contextmanager
def used_again() -> Iterator[None]:
    """Keep what is freed meanwhile for whoever asks next, and return it afterwards, as `return_at_once(SMALL)` does.

    For a stage that makes the same few temporary tensors over and over: each page of a mapped block that is touched
    first takes the system a microsecond or two, which was half of what comparing logits took.
    """
    _set(_KEPT, _KEPT_IN_ALL)
    try:
        yield
    finally:
        return_at_once(SMALL)


def _set(block: int, free: int) -> None:
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(block))
        library.mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(free))
    except (AttributeError, OSError, TypeError):  # no such function, or no library to ask for it
        return

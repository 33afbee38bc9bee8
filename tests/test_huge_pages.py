"""A model's own memory is moved onto huge pages, and nothing else is."""

from __future__ import annotations

import mmap
import platform
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lfm2_export.runtimes import _huge_pages
from lfm2_export.runtimes._huge_pages import HugePages, _without

PAGE = 2 << 20
KERNEL = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) if sys.platform == "linux" else (0, 0)


def huge_kilobytes() -> int:
    """Of this process, in huge pages."""
    return int(re.search(r"AnonHugePages:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text())[1])


@pytest.mark.skipif(KERNEL < (6, 1), reason="MADV_COLLAPSE is Linux's, from 6.1 on")
def test_memory_mapped_since_is_moved_and_keeps_its_content():
    earlier = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages, before = HugePages(), huge_kilobytes()
    later = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for memory in (earlier, later):
        np.frombuffer(memory, dtype=np.uint8)[:] = np.arange(16 * PAGE, dtype=np.int64) % 251
    pages.adopt().join()
    moved = (huge_kilobytes() - before) * 1024
    assert moved >= 12 * PAGE
    assert moved < 20 * PAGE, "memory that was there before was moved as well"
    np.testing.assert_array_equal(np.frombuffer(later, dtype=np.uint8), np.arange(16 * PAGE, dtype=np.int64) % 251)


def test_memory_unmapped_meanwhile_does_no_harm():
    pages = HugePages()
    gone = mmap.mmap(-1, 8 * PAGE)
    thread = pages.adopt()
    gone.close()
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_benchmark_can_wait_for_the_move(monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr(_huge_pages, "_collapse", lambda ranges: may_end.wait(30))
    moving = HugePages().adopt()
    threading.Timer(0.2, may_end.set).start()
    assert moving.is_alive()
    _huge_pages.wait()
    assert may_end.is_set()
    assert not moving.is_alive()


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(10, 20)]),
        ([(0, 10), (20, 30)], [(10, 20)]),
        ([(12, 14), (16, 25)], [(10, 12), (14, 16)]),
        ([(5, 12)], [(12, 20)]),
        ([(10, 20)], []),
        ([(0, 40)], []),
    ],
)
def test_what_was_there_is_cut_out(others, left):
    assert _without((10, 20), others) == left


def test_where_nothing_is_moved_no_library_is_asked(monkeypatch):
    """Windows has none without a name; the thread would end with a traceback on the terminal."""
    monkeypatch.setattr(_huge_pages.sys, "platform", "win32")
    monkeypatch.setattr(_huge_pages.ctypes, "CDLL", lambda name: pytest.fail("asked"))
    complaints = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    HugePages().adopt().join()
    assert complaints == []

"""What quantizing frees goes back to the system, so that a model's layers do not pile up in memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import gc, re, sys, torch
from pathlib import Path
from lfm2_export.quantize.freed_memory import return_at_once

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1000  # MB

if sys.argv[1] == "with":
    return_at_once()
torch.zeros(4 << 20).sum()  # freeing a mapped block teaches glibc to keep blocks of that size
before, kept, passing = resident(), [], []
for _ in range(60):
    passing.append(torch.ones(1 << 20))  # 4 MB, between blocks that stay
    kept.append(torch.ones(1 << 20, dtype=torch.int8))
passing.clear()
gc.collect()
if sys.argv[1] == "afterwards":
    return_at_once()
print(resident() - before)
"""


def growth(how: str) -> float:
    """MB that a process has grown by after freeing 250 MB and keeping 63."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed in this way")
def test_freed_tensors_leave_the_process():
    assert growth("without") > 200  # or the next line would show nothing
    assert growth("with") < 75
    assert growth("afterwards") < 75

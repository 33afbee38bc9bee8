"""The `lfm2-export` command, as a test runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lfm2_export.cli.main import run

# of a `bench` that is over at once
QUICK = ("--contexts", "32,64", "--prefill", "16", "--rounds", "1", "--threads", "1", "--quiet")


def code_of(*arguments: str) -> int:
    """Within the test's own process: the exit code it leaves with; what it printed is pytest's to show."""
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    return int(left.value.code or 0)


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lfm2_export", *arguments], capture_output=True, text=True, check=False, timeout=300
    )

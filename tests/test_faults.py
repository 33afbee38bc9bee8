"""A sample of `make faults`: commands that fail, or are killed, in the middle of writing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import strace

TESTS = Path(__file__).parent
SAMPLE = ("init --force", "chat --save-state", "compare --report", "export --force, no exchange", "bundle --split")


@pytest.fixture(scope="module", autouse=True)
def _tracing() -> None:
    """In CI strace is there; whether a process may be traced is the machine's to say."""
    reason = strace.hindrance()
    if reason is not None and strace.program() is None and "CI" in os.environ:
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)


def faults(program: list[str]) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, *program]
    return subprocess.run(words, capture_output=True, text=True, env=around, cwd=TESTS.parent, check=False)


@pytest.mark.slow
def test_the_old_or_the_new_one_whole_whatever_happens() -> None:
    done = faults(["-m", "faults", "--every", "13", *(word for name in SAMPLE for word in ("--only", name))])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "nothing else touched" in done.stdout
    assert len(re.findall(r"^.*: [1-9][0-9]* points, ", done.stdout, re.MULTILINE)) == len(SAMPLE)


@pytest.mark.slow
def test_a_command_that_writes_in_place_is_found_out() -> None:
    """The same points, and a `staged_folder` that removes the old one first: the sweep says what is lost."""
    broken = """
import contextlib, shutil, sys
from lfm2_export.files import staging
from lfm2_export.model import random_init

@contextlib.contextmanager
def in_place(output, *_):
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    yield output

random_init.staged_folder = in_place
from faults.__main__ import sweep
_, wrong, _ = sweep(every=9, only=["init --force"])
sys.exit(any("neither the old one nor the new one" in each for each in wrong))
"""
    assert faults(["-c", broken]).returncode == 1

"""A sample of `make faults`: commands that fail, or are killed, in the middle of writing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import strace

pytestmark = pytest.mark.skipif(
    strace.program() is None and "CI" not in os.environ, reason="needs strace: make .venv/installed-strace"
)
TESTS = Path(__file__).parent
SAMPLE = {"init --force": 9, "chat --save-state": 9, "compare --report": 12, "export --force, no exchange": 25}


def faults(program: list[str]) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, *program]
    return subprocess.run(words, capture_output=True, text=True, env=around, cwd=TESTS.parent, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "every"), SAMPLE.items())
def test_the_old_or_the_new_one_whole_whatever_happens(scenario: str, every: int) -> None:
    done = faults(["-m", "faults", "--only", scenario, "--every", str(every)])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "nothing else touched" in done.stdout


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
_, wrong, _ = sweep(every=9, only="init --force")
sys.exit(any("neither the old one nor the new one" in each for each in wrong))
"""
    assert faults(["-c", broken]).returncode == 1

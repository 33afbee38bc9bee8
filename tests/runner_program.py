"""`lfm2_runner` as the tests use it: built by `make test`, run on artifacts of the embedded nano model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lfm2_export.artifact.folder import seal
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes import _runner


def need_runner(kind: str = "x86_64") -> Path:
    """The program of that kind; skips where it is not built, unless CI asks for no such skip: then the test fails."""
    try:
        return _runner.program(kind)
    except MissingDependencyError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@dataclass(frozen=True)
class Ended:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def refused(self) -> str:
        """The one line of an error that is the runner's own: no crash, no sanitizer's report, nothing half done."""
        assert self.code == 2, (self.code, self.err[-2000:])
        assert self.out == ""
        assert self.err.startswith("lfm2_runner: ")
        assert self.err.count("\n") == 1
        return self.err


def execute(program: Path, *words: str | Path) -> Ended:
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def generate(program: Path, artifact: Path, *words: object) -> Ended:
    """A few tokens, greedily, on one thread."""
    line = ["--tokens", "3,4,5", "--greedy", "--max-new", "2", "--stop", "none", "--threads", "1"]
    return execute(program, "generate", artifact, *line, *map(str, words))


def flipped(data: bytes, at: int, bit: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[at] ^= 1 << bit
    return bytes(spoilt)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reseal(folder: Path) -> None:
    """Let the manifest vouch for the files as they are."""
    entries = {name: entry.model_dump() for name, entry in seal(folder).items()}
    edit_manifest(folder, files=entries)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))

"""`lfm2_runner`, the project's C++ program, as a child process: where it lies, and the messages of `runner/serve.h`."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.errors import ArtifactError, MissingDependencyError, UsageError, WindowExceededError

_VARIABLE = "LFM2_RUNNER"  # a folder like the one that `make runner` fills
_BUILD = "make runner (in a source tree, on Debian or Ubuntu)"


def folder() -> Path:
    """Return where `make runner` puts what it builds and what that needs."""
    given = os.environ.get(_VARIABLE)
    return Path(given) if given else Path(__file__).resolve().parents[2] / ".venv" / "runner"


def program(kind: str) -> Path:
    """The runner of that kind: x86_64, aarch64 or x86_64-asan. MissingDependencyError if it is not built."""
    path = folder() / kind / "lfm2_runner"
    if not path.is_file():
        raise MissingDependencyError(f"lfm2_runner for {kind} is not built; {_BUILD}")
    return path


class Runner:
    """A running `lfm2_runner serve`. It ends with this object, or when this process does."""

    def __init__(self, command: Sequence[str | Path], artifact: Path, threads: int | None) -> None:
        """ArtifactError when the runner refuses the artifact, with the reason that it gives."""
        words = [*map(str, command), "serve", str(artifact), *(["--threads", str(threads)] if threads else [])]
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  as long-lived as the process
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints)
        self._end = weakref.finalize(self, _end, self._process)
        self.pid = self._process.pid
        self.hello = self._answer()[0]

    def ask(self, wish: str, payload: bytes = b"", **rest: Any) -> tuple[dict[str, Any], bytes]:
        """Send a request, return the answer's fields and raw bytes.

        Raises WindowExceededError and UsageError for what the runner refuses (its state is then as before), and
        ArtifactError when it has ended.
        """
        size = {"bytes": len(payload)} if payload or wish == "restore" else {}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": wish, **size, **rest}).encode() + b"\n" + payload)
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None
        fields, data = self._answer()
        if "error" in fields:
            raise (WindowExceededError if fields.get("window") else UsageError)(fields["error"])
        return fields, data

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._gone()
        fields = json.loads(line)
        size = fields.get("bytes", 0)
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise self._gone()
        return fields, data

    def _gone(self) -> ArtifactError:
        code = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        last = said[-1].removeprefix("lfm2_runner: ") if said else f"exit status {code}, without a word"
        return ArtifactError(f"lfm2_runner ended: {last[:400]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def logits(data: bytes) -> np.ndarray:
    """`[vocab] float32` of a `feed`'s answer."""
    return np.frombuffer(data, dtype=np.float32).copy()

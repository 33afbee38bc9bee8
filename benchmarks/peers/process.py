"""Run a builder in a process of its own: its memory goes back when it ends, and its talk stays out of the way."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from lfm2_export.errors import LoweringError


def finish(command: Sequence[str], folder: Path | None = None) -> None:
    """Run to the end, in `folder`. LoweringError with the last line it said when it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise LoweringError(f"{' '.join(command[1:4])}: {last[:300]}")

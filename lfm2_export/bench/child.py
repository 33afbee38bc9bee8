"""A measuring process: fresh, with its own memory peak, load time and thread pools, bound to its own cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from lfm2_export.bench.quiet import available_cores
from lfm2_export.errors import ArtifactError, Lfm2ExportError

_LOOK = 0.2  # seconds


def call(module: str, request: str, who: str) -> str:
    """Run `python -m module` with the request on stdin and return its stdout.

    Raises ArtifactError, in `who`'s name, with the last line the process said when it fails.
    """
    command = [sys.executable, "-W", "ignore", "-m", module]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ArtifactError(f"{who}: could not be measured: {last[:300]}")
    return done.stdout.splitlines()[-1]  # a library may have spoken before


def answer(work: Callable[[str], str]) -> NoReturn:
    """Answer the request on stdin, as such a process, and end: whatever a library says on the way is left out.

    An Lfm2ExportError becomes a line on stderr and exit code 1.
    """
    from lfm2_export.progress.native_output import silenced

    try:
        with silenced(1):
            result = work(sys.stdin.read())
    except Lfm2ExportError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(result, flush=True)
    os._exit(0)  # some of these libraries crash when torn down, long after the result is there


def bind(threads: int) -> None:
    """Keep this process on `threads` cores, the idlest just now, before any library starts threads of its own.

    Every library is also told its thread count, and must be: ExecuTorch's pool does not look at the affinity. This
    holds back the threads that nobody asked about.
    """
    import psutil

    if hasattr(os, "sched_setaffinity"):
        busy = psutil.cpu_percent(interval=_LOOK, percpu=True)
        os.sched_setaffinity(0, sorted(available_cores(), key=lambda core: busy[core])[:threads])

"""One command in a process of its own under strace, which writes down its calls, or makes one of them fail.

The process is forked from this one, which has imported everything: strace attaches before the command begins, so its
counters begin there as well, and a run takes a second instead of ten.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn

# calls that change the file system; strace passes over those that this processor's Linux does not have
OPENS = ("open", "openat", "creat")
_BY_DESCRIPTOR = (
    *("write", "pwrite64", "writev", "sendfile", "copy_file_range", "ftruncate", "fsync", "fdatasync", "fchmod"),
)
CHANGES = (
    *_BY_DESCRIPTOR,
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir"),
    *("mkdir", "mkdirat", "chmod", "fchmodat"),
)
_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
_LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)")
_PATHS = re.compile(r'<([^<>]*)>|"((?:[^"\\]|\\.)*)"')
_SECONDS = 600
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1).value  # linux/prctl.h


class Call(NamedTuple):
    """A call of the command's main thread that changed a file: the `number`-th of that name, counted from its start."""

    name: str
    number: int
    path: str


class Ended(NamedTuple):
    """How a command ended: its exit code, or minus the signal that killed it."""

    code: int
    shown: str  # on stderr
    calls: list[Call]
    injected: bool
    struck: str | None  # the file of the call that an error was injected into


_UNPACKED = Path(sys.prefix) / "strace" / "usr"  # by setup.sh


def program() -> str | None:
    """The strace program: the one that setup.sh unpacked, or one that is installed."""
    unpacked = _UNPACKED / "bin" / "strace"
    return str(unpacked) if unpacked.is_file() else shutil.which("strace")


def hindrance() -> str | None:
    """What keeps processes here from being traced; None if nothing does."""
    if program() is None:
        return "strace is not installed: make .venv/installed-strace"
    child = os.fork()
    if child == 0:
        _wait_for_strace()
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    with tempfile.TemporaryDirectory() as folder:
        try:
            tracer = _attach(child, Path(folder) / "calls", None)
        except RuntimeError as error:
            os.waitpid(child, 0)
            return str(error)
        os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)
        tracer.communicate()
    return None


def run(words: list[str], work: Path, sandbox: Path, inject: str | None = None, *, plainly: bool = False) -> Ended:
    """Run `lfm2-export WORDS` in the folder `work`; calls count when they change something below `sandbox`.

    `inject` is strace's, such as "write:error=ENOSPC:when=7". With `plainly` renames do what systems without
    exchanging ones get.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            _become(words, work, folder / "stderr", plainly)
        os.waitpid(child, os.WUNTRACED)
        tracer = _attach(child, folder / "calls", inject)
        os.kill(child, signal.SIGCONT)
        signal.alarm(_SECONDS)  # a command that hangs is a finding too
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        tracer.wait()
        assert tracer.stderr is not None
        tracer.stderr.close()
        log = (folder / "calls").read_text(errors="replace")
        shown = (folder / "stderr").read_text(errors="replace")
        calls, injected = _changes(log, work, sandbox), _is_injected(inject, log)
        return Ended(os.waitstatus_to_exitcode(status), shown, calls, injected, _struck(log, work, sandbox))


def _become(words: list[str], work: Path, shown: Path, plainly: bool) -> NoReturn:
    """In the forked process: wait for strace, then be the command."""
    from lfm2_export.cli.main import run as command
    from lfm2_export.files import rename

    code = 99
    try:
        os.chdir(work)
        tempfile.tempdir = os.environ["TMPDIR"]  # Python would try it out, with a file of four bytes
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(os.open(shown, os.O_WRONLY | os.O_CREAT), 2)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        if plainly:
            rename._flagged = lambda *_: False  # type: ignore[assignment]
        _wait_for_strace()
        command(words)
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait_for_strace() -> None:
    """Stop until strace, no ancestor of this process, is attached: Yama allows that to those who are named."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY), 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def _attach(child: int, log: Path, inject: str | None) -> subprocess.Popen[str]:
    strace = program()
    assert strace is not None, "strace is missing: tests/faults/setup.sh .venv/strace"
    libraries = os.pathsep.join(str(folder.parent) for folder in _UNPACKED.glob("lib/*/libunwind.so.*"))
    words = [strace, "-y", "-s", "300", "-o", str(log), "-p", str(child)]
    words += ["-e", "trace=" + ",".join(f"?{name}" for name in (*OPENS, *CHANGES))]
    words += ["-e", f"inject={inject}"] if inject else []
    around = {**os.environ, "LD_LIBRARY_PATH": libraries} if libraries else None
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=around)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        os.kill(child, signal.SIGKILL)
        raise RuntimeError(f"strace could not attach: {said.strip()}")
    return tracer


def _is_injected(inject: str | None, log: str) -> bool:
    """Whether it came to that: strace marks an error it injects, and shows a signal as it arrives."""
    marks = ["(INJECTED)"]
    if inject and ":signal=" in inject:
        name = inject.partition(":signal=")[2].partition(":")[0]
        marks += [f"--- SIG{name} ", f"+++ killed by SIG{name} "]
    return any(mark in log for mark in marks)


def _struck(log: str, work: Path, sandbox: Path) -> str | None:
    line = next((line for line in log.splitlines() if line.endswith("(INJECTED)")), "")
    match = _LINE.match(line)
    if match is None:
        return None
    name, arguments, *_ = match.groups()
    path = _subject(arguments.partition(",")[0] + ', "."' if name in _BY_DESCRIPTOR else arguments, work)
    return str(path.relative_to(sandbox)) if path is not None and path.is_relative_to(sandbox) else str(path)


def _changes(log: str, work: Path, sandbox: Path) -> list[Call]:
    seen: Counter[str] = Counter()
    calls = []
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, arguments, result, _ = match.groups()
        seen[name] += 1
        if result.startswith("-") or (name in OPENS and not _WRITING.search(arguments)):
            continue
        if name in _BY_DESCRIPTOR:
            arguments = arguments.partition(",")[0] + ', "."'  # what is written is no name
        path = _subject(arguments, work)
        if path is not None and path.is_relative_to(sandbox):
            calls.append(Call(name, seen[name], str(path.relative_to(sandbox))))
    return calls


def _subject(arguments: str, work: Path) -> Path | None:
    """The file that a call is about: the first one named, below the folder descriptor before it if there is one."""
    folder = work
    for descriptor, text in _PATHS.findall(arguments):
        if text:
            return folder / text
        folder = Path(descriptor)
    return None

"""One fault, and whether all is well after it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from faults import strace
from faults.scenarios import Scenario, environment, lay_out
from faults.strace import Call, Ended

_CODES = {"TERM": 143, "HUP": 129, "INT": 130}
_ERRORS = {
    strace.OPENS: ("ENOSPC", "EMFILE", "EDQUOT", "EACCES", "EROFS", "EIO"),
    ("write", "pwrite64", "writev", "sendfile", "copy_file_range", "ftruncate"): ("ENOSPC", "EIO", "EDQUOT"),
    ("fsync", "fdatasync"): ("EIO", "ENOSPC", "EDQUOT"),
    ("mkdir", "mkdirat"): ("ENOSPC", "EACCES", "EROFS", "ENAMETOOLONG", "EDQUOT"),
    ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"): ("ENOSPC", "EACCES", "EIO", "EROFS"),
    ("unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat"): ("EACCES", "EIO", "EROFS"),
}
_REMOVES = ("unlink", "unlinkat", "rmdir")
_ROW = 6  # of so many calls alike in a row, such as one file's many writes, only some are tried

Files = dict[str, bytes]


class MissedError(Exception):
    """The fault came to another call than the one meant, which proves nothing."""


class Fault(NamedTuple):
    """What happens at a call: an error, or a signal."""

    call: Call
    kind: str  # "error" or "signal"
    name: str

    def __str__(self) -> str:
        return f"{self.name} at {self.call.name} {self.call.number} ({self.call.path})"


class Ground:
    """A scenario with its sandbox: how it looks before, and after a run that nothing disturbs."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.template, self.sandbox = scenario, folder / "template", folder / "sandbox"
        lay_out(self.sandbox)
        for words in scenario.before:
            self._succeed(words)
        shutil.rmtree(self.sandbox / "cache")
        (self.sandbox / "cache").mkdir()
        self.sandbox.rename(self.template)
        self.reset()
        self.before = self.files()
        undisturbed = self.run()
        assert undisturbed.code == 0, undisturbed.shown
        self.after, self.calls = self.files(), undisturbed.calls
        assert self.strays() == [], f"a run that nothing disturbs leaves {self.strays()}"
        self.changed = [name for name in self.after if self.before.get(name) != self.after[name]]
        assert all(self._is_output(name) for name in self.changed), self.changed
        assert bool(self.changed) == bool(scenario.outputs), "the scenario changes nothing"

    def faults(self) -> Iterator[Fault]:
        """At every call two errors, a kill, and one of the other signals that end a program."""
        errors = {name: cycle(kinds) for names, kinds in _ERRORS.items() for name in names}
        signals = cycle(_CODES)
        for call in _thinned(self.calls):
            for _ in range(2):
                yield Fault(call, "error", next(errors[call.name]))
            yield Fault(call, "signal", "KILL")
            yield Fault(call, "signal", next(signals))

    def try_out(self, fault: Fault) -> list[str]:
        """Everything that is wrong after the fault; empty when all is well. MissedError if it came to another call."""
        self.reset()
        ended = self.run(f"{fault.call.name}:{fault.kind}={fault.name}:when={fault.call.number}")
        if not ended.injected:
            return [f"not reached: exit code {ended.code}: {ended.shown.strip()[-300:]}"]
        if ended.struck is not None and _plain(ended.struck) != _plain(fault.call.path):
            raise MissedError(f"struck {ended.struck}: calls are counted otherwise than in the run before")
        wrong = [*self._ending(fault, ended), *self._outputs(fault), *self._rest(fault, ended)]
        again = self.run(forced=True)
        if again.code != 0:
            return [*wrong, f"the next run fails: {again.shown.strip()[-300:]}"]
        found = self.files()
        wrong += [f"the next run gives another {name}" for name in self.after if found.get(name) != self.after[name]]
        return wrong + [f"the next run leaves {name}" for name in self.strays()]

    def reset(self) -> None:
        """The sandbox as before the command."""
        shutil.rmtree(self.sandbox, ignore_errors=True)
        shutil.copytree(self.template, self.sandbox, symlinks=True)
        environment(self.sandbox)

    def run(self, inject: str | None = None, *, forced: bool = False) -> Ended:
        words = list(self.scenario.words)
        there = any(os.path.lexists(self.sandbox / "work" / name) for name in self.scenario.outputs)
        if forced and there and "--force" not in words and "--prefix-cache" not in words:
            words.append("--force")
        return strace.run(words, self.sandbox / "work", self.sandbox, inject, plainly=self.scenario.plainly)

    def files(self) -> Files:
        """Every file of `work/`, by its name there, but for those in hidden folders of ours."""
        work = self.sandbox / "work"
        found = [path for path in work.rglob("*") if path.is_file() and path not in self._hidden_files()]
        return {path.relative_to(work).as_posix(): path.read_bytes() for path in found}

    def strays(self) -> list[str]:
        """Hidden folders of ours, and temporary files."""
        hidden = [path for path in self.sandbox.rglob(".*") if path.name.endswith((".lfm2-export", ".partial"))]
        return [str(path.relative_to(self.sandbox)) for path in (*hidden, *(self.sandbox / "tmp").iterdir())]

    def _succeed(self, words: tuple[str, ...]) -> None:
        environment(self.sandbox)
        ended = strace.run(list(words), self.sandbox / "work", self.sandbox)
        assert ended.code == 0, (words, ended.shown)

    def _ending(self, fault: Fault, ended: Ended) -> Iterator[str]:
        """The exit code, and one line that says what happened."""
        lines = [line for line in ended.shown.splitlines() if line.startswith("error: ")]
        if "Traceback" in ended.shown or "internal error" in ended.shown:
            yield f"not one line: {ended.shown.strip()[-300:]}"
        elif fault.kind == "signal" and fault.name == "KILL":
            if ended.code != -9:
                yield f"killed, and ended with {ended.code}"
        elif fault.kind == "signal":
            if ended.code not in (_CODES[fault.name], 0):  # it may come when all is done
                yield f"ended with {ended.code}: {ended.shown.strip()[-300:]}"
        elif ended.code == 0:
            if any(self.files().get(name) != self.after[name] for name in self.changed):
                yield "exit code 0, and the output is not there"
        elif ended.code != 2 or len(lines) != 1 or not _says_why(lines[0], fault):
            yield f"ended with {ended.code}: {ended.shown.strip()[-300:]}"

    def _outputs(self, fault: Fault) -> Iterator[str]:
        """Each the old one whole, or the new one whole; what was kept beside is the new one whole."""
        found = self.files()
        for output in self.scenario.outputs:
            is_now = _part(found, output)
            if not is_now and self._is_aside(fault, output):
                continue
            if is_now not in (_part(self.before, output), _part(self.after, output)):
                yield f"{output} is neither the old one nor the new one"

    def _rest(self, fault: Fault, ended: Ended) -> Iterator[str]:
        """Nothing else is touched; nothing lies about but after a kill, or where removing was what failed."""
        found = self.files()
        for name, data in self.before.items():
            if not self._is_output(name) and found.get(name) != data:
                yield f"{name} is not what it was"
        for name in found.keys() - self.before.keys():
            if not self._is_output(name) and not self._is_kept_beside(name, found, ended):
                yield f"{name} is new"
        removing = fault.kind == "error" and fault.call.name in _REMOVES
        kept = [] if fault.name == "KILL" or removing else self.strays()
        yield from (f"{name} lies about" for name in kept if not name.endswith(".partial"))

    def _is_output(self, name: str) -> bool:
        return any(name == output or name.startswith(f"{output}/") for output in self.scenario.outputs)

    def _is_aside(self, fault: Fault, output: str) -> bool:
        """Whether a kill came between two renames, where one call cannot do both; the next run puts the old back."""
        olds = (self.sandbox / "work").glob(f".*.lfm2-export/old/{output}")
        wholes = [
            {p.relative_to(old).as_posix(): p.read_bytes() for p in old.rglob("*") if p.is_file()} for old in olds
        ]
        return self.scenario.plainly and fault.name == "KILL" and _part(self.before, output) in wholes

    def _is_kept_beside(self, name: str, found: Files, ended: Ended) -> bool:
        for output in self.scenario.outputs:
            path = Path(output)
            is_file = _part(self.after, output).keys() == {""}
            beside = str(path.with_name(f"{path.stem}.1{path.suffix}" if is_file else f"{path.name}.1"))
            if (name == beside or name.startswith(f"{beside}/")) and f"kept as {beside}" in ended.shown:
                return _part(found, beside) == _part(self.after, output)
        return False

    def _hidden_files(self) -> set[Path]:
        hidden = [path for path in self.sandbox.rglob(".*") if path.name.endswith((".lfm2-export", ".partial"))]
        return {path for folder in hidden for path in folder.rglob("*")}


def _plain(path: str) -> str:
    """Without the random parts of the names of a hidden folder, a temporary one and what safetensors writes first."""
    return re.sub(r"\.[a-z0-9_]{8}(?=\.lfm2-export|$|/)|(?<=/tmp)[a-z0-9_]{8}|(?<=/\.tmp)[A-Za-z0-9]{6}$", "", path)


def _says_why(line: str, fault: Fault) -> bool:
    """In the system's words; onnxruntime, which packs weights by itself, hides them, and a place is named instead."""
    return os.strerror(getattr(errno, fault.name)) in line or "let LFM2_EXPORT_CACHE name another folder" in line


def _part(files: Files, output: str) -> Files:
    """The output's own files: by name within it, and "" for one that is a file itself."""
    return {
        name[len(output) :].removeprefix("/"): data
        for name, data in files.items()
        if name == output or name.startswith(f"{output}/")
    }


def _thinned(calls: list[Call]) -> Iterator[Call]:
    """Of many calls in a row that do the same to the same file the first two, the middle one and the last two."""
    row: list[Call] = []
    for call in [*calls, None]:
        if row and (call is None or (call.name, call.path) != (row[-1].name, row[-1].path)):
            yield from row if len(row) <= _ROW else [*row[:2], row[len(row) // 2], *row[-2:]]
            row = []
        if call is not None:
            row.append(call)

"""Outputs are whole or absent, whatever ends the run; what a killed one leaves is swept by the next beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from checkpoints import tiny_config
from command import code_of
from vision_checkpoints import save_vision

from lfm2_export.errors import UsageError
from lfm2_export.files import (
    ANY,
    FileKind,
    FolderKind,
    Need,
    check_room,
    hidden,
    staged_file,
    staged_folder,
    write_bytes,
)
from lfm2_export.files.interrupts import Stopped, orderly_end, uninterrupted
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export

Contents = Callable[[Path], dict[str, bytes]]
KIND = FolderKind("test", lambda _: {"one"})


@pytest.fixture(autouse=True)
def _as_a_terminal_starts_it() -> Iterator[None]:
    """Under nohup, or behind an &, some signals are ignored from the start, by these tests and by what they start."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def hidden_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(hidden.SUFFIX)]


class Writing(NamedTuple):
    """A command, a file of its output that is there before it ends, and a shorter run that writes such an output."""

    words: list[str]
    file: str
    next: Callable[[Path], object]


INIT = Writing(["init", "--size", "350m"], "model.safetensors", lambda folder: init_checkpoint(tiny_config(), folder))


def writing(folder: Path, what: Writing = INIT) -> subprocess.Popen[str]:
    """A run under way."""
    words = [sys.executable, "-m", "lfm2_export", *what.words, "-o", str(folder / "big"), "-q"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not any((path / hidden.NEW / what.file).exists() for path in hidden_in(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_that_ends_the_run_leaves_nothing(number: str, code: int, tmp_path: Path) -> None:
    process = writing(tmp_path)
    process.send_signal(getattr(signal, number))
    _, shown = process.communicate(timeout=120)
    assert process.returncode == code
    assert shown == f"error: stopped by {number}\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["init", "export with images"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Writing:
    if request.param == "init":
        return INIT
    folder = tmp_path_factory.mktemp("vision") / "model"
    save_vision(folder, "lfm2_vl")
    words = ["export", str(folder), "-r", "onnx-int4", "--set", "vision=fp16", "--set", "window=96"]
    changes = ["vision=fp16", "window=96"]
    return Writing(
        words,
        "onnx/vision_encoder_fp16.onnx",
        lambda output: export(str(folder), "onnx-int4", output, overrides=changes, verify=False),
    )


def test_what_a_killed_run_leaves_is_shown_and_swept_by_the_next_one(
    command: Writing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("untouched")
    process = writing(tmp_path, command)
    process.send_signal(signal.SIGSTOP)  # it keeps its lock
    monkeypatch.chdir(tmp_path)
    (left,) = hidden_in(tmp_path)

    def state() -> tuple[str, int]:
        code_of("doctor", "--json")
        (found,) = [each for each in json.loads(capsys.readouterr().out)["leftovers"] if each["path"] == str(left)]
        return found["state"], found["size"]

    assert state()[0] == "a run is writing it"
    init_checkpoint(tiny_config(), tmp_path / "beside")
    assert left.exists()
    process.kill()
    process.communicate()
    assert state()[0].startswith("left by a run that was killed")
    assert state()[1] >= (left / hidden.NEW / command.file).stat().st_size
    code_of("doctor")
    assert left.name in capsys.readouterr().out.replace("\n", "")
    command.next(tmp_path / "big")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "big", "mine"]
    assert (tmp_path / "big" / command.file).is_file()


def test_a_folder_that_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    (tmp_path / f".a.b{hidden.SUFFIX}").mkdir()
    (tmp_path / f".a.b{hidden.SUFFIX}" / "notes").write_text("mine")
    (tmp_path / f".file{hidden.SUFFIX}").write_text("mine")
    (tmp_path / f".link{hidden.SUFFIX}").symlink_to(tmp_path / f".a.b{hidden.SUFFIX}")
    hidden.sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / f".a.b{hidden.SUFFIX}" / "notes").read_text() == "mine"


def test_a_name_that_was_taken_away_and_not_given_back_is_given_back(tmp_path: Path, contents: Contents) -> None:
    for name, taken in (("out", False), ("other", True)):
        left = tmp_path / f".{name}.abc{hidden.SUFFIX}"
        for parent in (left / hidden.OLD / name, left / hidden.NEW):
            parent.mkdir(parents=True)
            (parent / "one").write_text(f"{parent.parent.name} {name}")
        (left / "lock").touch()
        if taken:
            (tmp_path / name).write_text("somebody else's")
    hidden.sweep(tmp_path)
    assert contents(tmp_path) == {
        "out/one": b"old out",
        "other": b"somebody else's",
        "other.1/one": b"old other",
    }


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(hidden.fcntl, "flock", refuse)
    with staged_folder(tmp_path / "slow", False, KIND) as slow:
        (slow / "one").write_text("slow")
        with staged_folder(tmp_path / "quick", False, KIND) as quick:
            (quick / "one").write_text("quick")
        monkeypatch.undo()
        with staged_folder(tmp_path / "third", False, KIND) as third:
            (third / "one").write_text("third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick", "slow", "third"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (28, "make room"),
        (122, "quota"),
        (5, "failing"),
        (30, "can only be read"),
        (13, "permissions"),
        (36, "shorter name"),
        (24, "ulimit"),
    ],
)
def test_an_error_of_the_system_says_what_where_and_what_to_do(number: int, advice: str, tmp_path: Path) -> None:
    def write() -> None:
        with staged_folder(tmp_path / "out", False, KIND) as folder:
            raise OSError(number, os.strerror(number), str(folder / "model.onnx"))

    with pytest.raises(UsageError, match=advice) as failed:
        write()
    assert str(failed.value).startswith(f"cannot write {tmp_path / 'out'}: {os.strerror(number)}; ")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_is_said_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("init", "--size", "350m", "-o", str(tmp_path / ("x" * 300)), "-q") == 2
    assert "choose a shorter name" in capsys.readouterr().err
    longest = tmp_path / ("ü" * 127)
    with staged_folder(longest, False, KIND) as folder:
        (folder / "one").write_text("fits")
    assert (longest / "one").read_text() == "fits"


class TestFiles:
    def test_a_file_of_another_kind_is_never_replaced(self, tmp_path: Path) -> None:
        def check(path: Path) -> None:
            if path.read_bytes() != b"ours":
                raise UsageError("it is not ours")

        kind, path = FileKind("test", check), tmp_path / "file"
        write_bytes(path, b"ours", False, kind)
        write_bytes(path, b"theirs", True, kind)
        with pytest.raises(UsageError, match=r"not made by `lfm2-export test`.*remove it yourself"):
            write_bytes(path, b"ours again", True, kind)
        assert path.read_bytes() == b"theirs"

    def test_a_name_taken_meanwhile_keeps_what_it_has(self, tmp_path: Path, contents: Contents) -> None:
        def write() -> None:
            with staged_file(tmp_path / "report.md", False, ANY) as new:
                new.write_text("ours")
                (tmp_path / "report.md").write_text("theirs")

        with pytest.raises(UsageError, match=r"kept as .*report\.1\.md"):
            write()
        assert contents(tmp_path) == {"report.md": b"theirs", "report.1.md": b"ours"}

    def test_a_device_is_not_replaced(self) -> None:
        with pytest.raises(UsageError, match="no plain file"):
            write_bytes(Path("/dev/null"), b"ours", True, ANY)


class TestInterrupts:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_what_belongs_together_is_done_to_its_end(self, number: signal.Signals) -> None:
        done = []

        def steps() -> None:
            with orderly_end(), uninterrupted():
                signal.raise_signal(number)
                done.append("the second step")

        with pytest.raises(Stopped) as stopped:
            steps()
        assert done == ["the second step"]
        assert stopped.value.code == 128 + number

    def test_an_error_within_does_not_swallow_the_signal(self) -> None:
        def steps() -> None:
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                raise ValueError

        with pytest.raises(KeyboardInterrupt):
            steps()

    def test_one_that_comes_as_the_hidden_folder_is_made_leaves_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        genuine = hidden.tempfile.mkdtemp

        def interrupted(**options: object) -> str:
            made = genuine(**options)  # type: ignore[call-overload]
            signal.raise_signal(signal.SIGTERM)
            return made

        monkeypatch.setattr(hidden.tempfile, "mkdtemp", interrupted)
        with pytest.raises(Stopped), orderly_end(), staged_file(tmp_path / "file", False, ANY):
            pass
        assert not list(tmp_path.iterdir())

    def test_a_signal_that_is_ignored_stays_ignored(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        with orderly_end(), uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class TestRoom:
    @pytest.fixture(autouse=True)
    def _a_small_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = shutil.disk_usage(Path.cwd())._replace(free=1_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: small)

    def test_needs_on_one_disk_add_up(self, tmp_path: Path) -> None:
        half = [Need(tmp_path / "not" / "yet" / "there", 600_000, "these"), Need(tmp_path, 600_000, "those")]
        for need in half:
            check_room(need)
        with pytest.raises(UsageError, match=r"these and those, at least 1\.2 MB, do not fit the 1 MB"):
            check_room(*half)

    @pytest.mark.parametrize("method", ["nearest", "gptq"])
    def test_an_export_that_does_not_fit_is_refused_before_any_work(
        self, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = "onnx-fp32" if method == "nearest" else "onnx-int4"
        words = ["export", "nano", "-r", recipe, "--weights", method, "-o", str(tmp_path / "a"), "-q"]
        assert code_of(*words) == 2
        shown = capsys.readouterr().err
        assert "do not fit" in shown
        assert ("record" in shown) == (method == "gptq")
        assert not list(tmp_path.iterdir())


_KILLED_COMPILER = """
import os, signal, tempfile
from lfm2_export.targets._compiling import swept_temporaries
with swept_temporaries():
    open(os.path.join(tempfile.mkdtemp(), "schema.fbs"), "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_compilers_temporary_files_are_swept_by_the_next(tmp_path: Path) -> None:
    around = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", _KILLED_COMPILER], env=around, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("schema.fbs")] == ["schema.fbs"]
    whole = _KILLED_COMPILER.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    whole += "assert tempfile.gettempdir() == os.environ['TMPDIR']\n"
    subprocess.run([sys.executable, "-c", whole], env=around, check=True)
    assert list(tmp_path.iterdir()) == []

"""A run that is stopped leaves nothing; what a killed one leaves is shown, and swept by the next beside it."""

from __future__ import annotations

import json
import os
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

from lfm2_export.environment import libraries, machine
from lfm2_export.files import ANY, hidden, staged_file
from lfm2_export.files.interrupts import Stopped, orderly_end, uninterrupted
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export


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

    # what doctor says of libraries and the machine takes it seconds, and is told by other tests
    monkeypatch.setattr(libraries, "parts", list)
    monkeypatch.setattr(machine, "machine", dict)

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

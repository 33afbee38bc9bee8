"""Outputs are whole or absent, never over what is somebody else's, and what will not fit is said before any work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import code_of

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

Contents = Callable[[Path], dict[str, bytes]]
KIND = FolderKind("test", lambda _: {"one"})


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

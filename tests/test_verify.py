"""`verify` passes what `bundle` wrote and refuses everything else, in one line and leaving nothing behind."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_bundles import HOSTILE, spoiled
from small_bundles import archived, described, small_artifact, small_contents, unpacked

import lfm2_export
from lfm2_export import verify
from lfm2_export.bundle.parts import write_parts
from lfm2_export.cli.main import run
from lfm2_export.errors import BundleError, Lfm2ExportError, UsageError

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return described(small_contents(tmp_path / "source"))


@pytest.fixture
def parts(files: dict[str, bytes], tmp_path: Path) -> Path:
    data = archived(files, tmp_path / "whole.zip").read_bytes()
    write_parts(iter([memoryview(data)]), len(data), 1000, tmp_path / "whole.parts", "whole.zip", False)
    return tmp_path / "whole.parts"


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(Lfm2ExportError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700 + len(str(Path.cwd()))
    return message


def test_an_archive_its_parts_and_the_unpacked_folder_are_the_same_bundle(
    files: dict[str, bytes], parts: Path, tmp_path: Path
) -> None:
    forms = {
        "archive": archived(files, tmp_path / "a.zip"),
        "folder": unpacked(files, tmp_path / "folder"),
        "parts": parts,
    }
    for form, path in forms.items():
        found = verify(path)
        assert (found.kind, found.form, found.files) == ("android", form, len(files))
        assert (found.runtime_requirement, found.window) == ("executorch==1.5.1", 64)
        assert (found.proven, found.golden_cases, found.licences) == (False, 1, ["LICENSE"])
    assert len({verify(path).sha256 for path in forms.values()}) == 1
    (parts / "parts.json").unlink()
    assert verify(parts / "whole.zip.001").form == "parts"


def test_an_artifact_folder_can_be_verified_too(tmp_path: Path) -> None:
    found = verify(small_artifact(tmp_path / "artifact"))
    assert (found.kind, found.golden_cases) == ("artifact", 0)
    (tmp_path / "artifact" / "model.pte").write_bytes(b"other")
    assert "model.pte" in one_line(lambda: verify(tmp_path / "artifact"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_in_one_line(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    path, expected = spoiled(name, files, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    message = one_line(lambda: verify(path))
    assert str(tmp_path) in message
    assert expected in message
    assert sorted(tmp_path.rglob("*")) == before


def refused(path: Path) -> bool:
    try:
        verify(path)
    except BundleError as error:
        return str(error).isprintable()
    return False


@pytest.mark.parametrize("form", ["archive", "folder", "parts", "artifact"])
def test_no_flipped_bit_passes(form: str, files: dict[str, bytes], parts: Path, tmp_path: Path) -> None:
    """1,000 random places of each form, one bit at a time; the bytes are put back after each."""
    if form == "archive":
        root = archived(files, tmp_path / "a.zip")
        targets = [root]
    else:
        root = {"folder": lambda: unpacked(files, tmp_path / "folder"), "parts": lambda: parts}.get(
            form, lambda: tmp_path / "source"
        )()
        targets = sorted(path for path in root.rglob("*") if path.is_file())
    dice = random.Random(20260101)
    sizes = [path.stat().st_size for path in targets]
    verify(root)
    passed = []
    for _ in range(1000):
        path = dice.choices(targets, sizes)[0]
        good = path.read_bytes()
        at, bit = dice.randrange(len(good)), 1 << dice.randrange(8)
        path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        if not refused(root):
            passed.append((path.name, at, bit))
        path.write_bytes(good)
    if form == "artifact":  # nobody vouches for the manifest's own prose: its name, its versions
        passed = [flip for flip in passed if flip[0] != "manifest.json"]
    assert passed == []


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_no_truncated_archive_passes(share: float, files: dict[str, bytes], tmp_path: Path) -> None:
    path = archived(files, tmp_path / "a.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    one_line(lambda: verify(path))


def test_parts_that_are_missing_swapped_or_too_many_are_refused(parts: Path, tmp_path: Path) -> None:
    verify(parts)
    first, second, last = (sorted(parts.glob("*.0*"))[i] for i in (0, 1, -1))
    for spoil, expected in (
        (lambda folder: (folder / last.name).unlink(), "missing"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "not one of"),
        (lambda folder: (folder / "parts.json").write_text("{}"), "schema version None"),
        (lambda folder: (folder / first.name).write_bytes(b"x"), "1 bytes, expected 1000"),
        (lambda folder: shutil.copy(parts / second.name, folder / first.name), "header"),
    ):
        folder = tmp_path / "copy"
        shutil.copytree(parts, folder)
        spoil(folder)
        assert expected in one_line(lambda folder=folder: verify(folder))
        shutil.rmtree(folder)


def test_exit_codes_and_json(files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            run(["verify", *arguments])
        return int(left.value.code or 0)

    path = archived(files, tmp_path / "a.zip")
    assert code(str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["runtime_requirement"] == "executorch==1.5.1"
    assert code(str(path)) == 0
    assert "the app must use executorch==1.5.1" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-1])
    assert code(str(path)) == 1
    assert capsys.readouterr().err.count("\n") == 1
    for misuse in ([str(tmp_path / "none")], [str(path), "--signature", "x"], [str(tmp_path)], []):
        assert code(*misuse) == 2


def test_needs_neither_torch_nor_a_runtime(files: dict[str, bytes], tmp_path: Path) -> None:
    path = archived(files, tmp_path / "a.zip")
    blocked = ("torch", "executorch", "onnx", "onnxruntime", "transformers", "tokenizers", "numpy", "safetensors")
    probe = f"import sys; sys.modules |= dict.fromkeys({blocked!r}); from lfm2_export.cli.main import run\n"
    for arguments in ([str(path)], ["--help"]):
        command = [sys.executable, "-c", f"{probe}run({['verify', *arguments]!r})"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_package_exports_both(tmp_path: Path) -> None:
    assert "verify" in lfm2_export.__all__
    from lfm2_export import bundle

    assert callable(bundle)
    with pytest.raises(UsageError, match="toaster"):
        bundle(lfm2_export.open_artifact(small_artifact(tmp_path / "artifact")), "toaster")


def test_control_characters_of_a_file_never_reach_the_terminal(files: dict[str, bytes], tmp_path: Path) -> None:
    path = archived({**files, "evil\x1b[31m\nname": b""}, tmp_path / "a.zip")
    assert not re.search(r"[\x00-\x1f]", one_line(lambda: verify(path)))

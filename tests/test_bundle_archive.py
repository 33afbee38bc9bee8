"""The archive of a bundle: what it holds, the same bytes each time, golden cases, ZIP64, every phone's recipe."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command import code_of
from runner_program import reseal

from lfm2_export import bundle, recipes, runtimes, verify
from lfm2_export.artifact.folder import Artifact
from lfm2_export.bundle import archive, zip_format
from lfm2_export.bundle.joined_files import JoinedFiles
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.pipeline import export


@pytest.fixture(scope="module")
def packed(small_pte: Artifact) -> Path:
    return bundle(small_pte, "android").path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_holds_the_artifact_licence_and_golden_cases_as_any_unzip_reads_them(small_pte: Artifact, packed: Path) -> None:
    assert packed == small_pte.folder.with_name("nano-android.zip")
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "bundle.json"
        assert names[1:] == sorted({*small_pte.manifest.files, "manifest.json", "golden.json"})
        assert {(i.compress_type, i.date_time, i.external_attr >> 16) for i in archive.infolist()} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 0o100644)
        }
        about = json.loads(archive.read("bundle.json"))
        for name, entry in about["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == entry["sha256"]
        assert about["kind"] == "android"
        assert about["eos_ids"] == [7]
        assert archive.read("LICENSE") == b"LFM Open License v1.0\n"
        assert archive.read("manifest.json") == (small_pte.folder / "manifest.json").read_bytes()
    found = verify(packed)
    assert (found.kind, found.golden_cases, found.licences) == ("android", 3, ["LICENSE"])
    assert found.runtime_requirement == small_pte.manifest.runtime_requirement


def test_two_runs_in_two_folders_give_the_same_bytes(small_pte: Artifact, packed: Path, tmp_path: Path) -> None:
    """Times, modes and the order in which a folder lists its files leave no trace."""
    other = tmp_path / "elsewhere" / "nano"
    other.mkdir(parents=True)
    for path in sorted(small_pte.folder.iterdir(), reverse=True):
        shutil.copyfile(path, other / path.name)
        (other / path.name).chmod(0o600)
        os.utime(other / path.name, (1, 1))
    for output in (tmp_path / "1.zip", tmp_path / "2.zip"):
        assert sha256(bundle(other, "android", output).path) == sha256(packed)


def test_golden_cases_can_be_replayed(small_pte: Artifact, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        golden = json.loads(archive.read("golden.json"))
    assert "informative" in golden["digest"]
    runtime = runtimes.able(small_pte.manifest)[0]
    session = runtimes.find(runtime).open_session(small_pte.folder, small_pte.manifest)
    for case in golden["cases"]:
        session.reset()
        logits = session.prefill(case["prompt"])
        for step in case["steps"]:
            assert [float(logits[token]) for token in step["top"]] == pytest.approx(step["logits"], abs=1e-6)
            assert hashlib.sha256(np.asarray(logits, "<f4").tobytes()).hexdigest() == step["sha256"]
            if step is not case["steps"][-1]:
                logits = session.decode(step["top"][0])
    assert golden["cases"][0]["reply"] == "The sky is blue."
    tokenizer = ChatTokenizer.load(small_pte.folder, open_checkpoint("nano").config)
    texts = [tokenizer.decode(each["prompt"], False) for each in golden["tool_prompts"]]
    assert texts == [tokenizer.render(each["messages"], each["tools"]) for each in golden["tool_prompts"]]
    assert all("get_weather" in text for text in texts)
    assert "tool_response" in texts[1]


def test_zip64_where_a_number_does_not_fit_and_only_there(tmp_path: Path) -> None:
    """Entries before, of and after 4 GiB, in a sparse file that takes no room."""
    last = archive.measure(b"end")
    entries = [
        zip_format.Entry("a", 0xFFFFFFFE, 1),
        zip_format.Entry("b", 0xFFFFFFFF, 2),
        zip_format.Entry("c", last.size, last.crc),
    ]
    layout = zip_format.lay_out(entries)
    path = tmp_path / "large.zip"
    with path.open("wb") as file:
        for (offset, header), entry in zip(layout.headers, entries, strict=True):
            file.seek(offset)
            file.write(header)
            if entry.name == "c":
                file.write(b"end")
        file.seek(layout.tail_at)
        file.write(layout.tail)
    with zipfile.ZipFile(path) as read:
        assert [(info.filename, info.file_size) for info in read.infolist()] == [entry[:2] for entry in entries]
        assert [bool(info.extra) for info in read.infolist()] == [False, True, True]
        assert read.read("c") == b"end"
    with JoinedFiles([path]) as data:
        assert zip_format.read_entries(data.read, data.size, "large")[0] == entries
    assert b"PK\x06\x06" not in zip_format.lay_out(entries[2:]).tail


def test_a_bfloat16_cache_is_refused_for_android_which_has_no_such_tensor(tmp_path: Path) -> None:
    narrow = ["window=64", "cache=bfloat16"]
    folder = export("nano", "xnnpack-int8", tmp_path / "narrow", overrides=narrow, verify=False)[0].folder
    with pytest.raises(UsageError, match=r"bfloat16.*--set cache=float32.*--form resident"):
        bundle(folder, "android")
    assert list(tmp_path.iterdir()) == [folder]
    assert bundle(folder, "desktop").path.is_file()


@pytest.mark.parametrize("form", ["explicit", "resident"])
@pytest.mark.parametrize("recipe", [name for name in recipes.names() if name.startswith("xnnpack-")])
def test_every_cpu_recipe_goes_to_a_phone_without_an_option(tmp_path: Path, recipe: str, form: str) -> None:
    """As README tells a phone's developer: export, bundle, verify."""
    folder = tmp_path / "nano"
    assert code_of("export", "nano", "--recipe", recipe, "--form", form, "-o", str(folder), "--no-verify", "-q") == 0
    assert code_of("bundle", str(folder), "--for", "android", "-q") == 0
    assert verify(tmp_path / "nano-android.zip").kind == "android"


def test_what_only_a_proof_reads_is_not_shipped(small_pte: Artifact, packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_pte.folder, tmp_path / "nano")
    (folder / "quantized.safetensors").write_bytes(bytes(5000))
    reseal(folder)
    archive = bundle(folder, "android").path
    with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(packed) as plain:
        assert opened.namelist() == plain.namelist()
        assert set(json.loads(opened.read("bundle.json"))["files"]["manifest.json"]) == {"size", "sha256"}
    assert verify(archive).form == "archive"

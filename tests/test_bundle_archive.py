"""Bundles for apps: the same bytes each time, in parts that can be gone on with, within a budget, with golden cases."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import code_of
from small_bundles import archived, described, small_artifact, small_contents

from lfm2_export import bundle, recipes, runtimes, verify
from lfm2_export.artifact.folder import Artifact, open_artifact, parse_manifest, seal, write_manifest
from lfm2_export.bundle import archive, budget, pack, parts, zip_format
from lfm2_export.bundle.joined_files import JoinedFiles
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.cli.main import run
from lfm2_export.errors import BundleError, UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.pipeline import export


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """nano for ExecuTorch, with a licence beside it as a real checkpoint has one."""
    output = tmp_path_factory.mktemp("packed") / "nano"
    folder = export("nano", "xnnpack-int8", output, overrides=["window=64"], verify=False)[0].folder
    (folder / "LICENSE").write_text("LFM Open License v1.0\n")
    reseal(folder)
    return open_artifact(folder)


def reseal(folder: Path) -> None:
    """Make the manifest vouch for what lies in the folder now."""
    manifest = parse_manifest((folder / "manifest.json").read_bytes(), "manifest")
    write_manifest(folder, manifest.model_copy(update={"files": seal(folder)}))


@pytest.fixture(scope="module")
def packed(artifact: Artifact) -> Path:
    return bundle(artifact, "android").path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_holds_the_artifact_licence_and_golden_cases_as_any_unzip_reads_them(artifact: Artifact, packed: Path) -> None:
    assert packed == artifact.folder.with_name("nano-android.zip")
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "bundle.json"
        assert names[1:] == sorted({*artifact.manifest.files, "manifest.json", "golden.json"})
        assert {(i.compress_type, i.date_time, i.external_attr >> 16) for i in archive.infolist()} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 0o100644)
        }
        about = json.loads(archive.read("bundle.json"))
        for name, entry in about["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == entry["sha256"]
        assert about["kind"] == "android"
        assert about["eos_ids"] == [7]
        assert archive.read("LICENSE") == b"LFM Open License v1.0\n"
        assert archive.read("manifest.json") == (artifact.folder / "manifest.json").read_bytes()
    found = verify(packed)
    assert (found.kind, found.golden_cases, found.licences) == ("android", 3, ["LICENSE"])
    assert found.runtime_requirement == artifact.manifest.runtime_requirement


def test_two_runs_in_two_folders_give_the_same_bytes(artifact: Artifact, packed: Path, tmp_path: Path) -> None:
    """Times, modes and the order in which a folder lists its files leave no trace."""
    other = tmp_path / "elsewhere" / "nano"
    other.mkdir(parents=True)
    for path in sorted(artifact.folder.iterdir(), reverse=True):
        shutil.copyfile(path, other / path.name)
        (other / path.name).chmod(0o600)
        os.utime(other / path.name, (1, 1))
    for output in (tmp_path / "1.zip", tmp_path / "2.zip"):
        assert sha256(bundle(other, "android", output).path) == sha256(packed)


def test_golden_cases_can_be_replayed(artifact: Artifact, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        golden = json.loads(archive.read("golden.json"))
    assert "informative" in golden["digest"]
    runtime = runtimes.able(artifact.manifest)[0]
    session = runtimes.find(runtime).open_session(artifact.folder, artifact.manifest)
    for case in golden["cases"]:
        session.reset()
        logits = session.prefill(case["prompt"])
        for step in case["steps"]:
            assert [float(logits[token]) for token in step["top"]] == pytest.approx(step["logits"], abs=1e-6)
            assert hashlib.sha256(np.asarray(logits, "<f4").tobytes()).hexdigest() == step["sha256"]
            if step is not case["steps"][-1]:
                logits = session.decode(step["top"][0])
    assert golden["cases"][0]["reply"] == "The sky is blue."
    tokenizer = ChatTokenizer.load(artifact.folder, open_checkpoint("nano").config)
    texts = [tokenizer.decode(each["prompt"], False) for each in golden["tool_prompts"]]
    assert texts == [tokenizer.render(each["messages"], each["tools"]) for each in golden["tool_prompts"]]
    assert all("get_weather" in text for text in texts)
    assert "tool_response" in texts[1]


class TestQuick:
    """What needs no model: golden cases are given."""

    @pytest.fixture(autouse=True)
    def _given(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        contents = small_contents(tmp_path / "given")
        golden = json.loads(contents["golden.json"])
        monkeypatch.setattr(pack, "golden_cases", lambda artifact, tokenizer: golden)
        monkeypatch.setattr(pack.ChatTokenizer, "load", lambda folder, config: _Tokenizer())

    @pytest.fixture
    def small(self, tmp_path: Path) -> Path:
        return small_artifact(tmp_path / "app" / "small")

    def test_parts_in_a_row_are_the_archive(self, small: Path) -> None:
        whole = bundle(small, "ios").path
        cut = bundle(small, "ios", split=1000)
        names = [f"small-ios.zip.{number:03}" for number in range(1, cut.parts + 1)]
        assert sorted(path.name for path in cut.path.iterdir()) == ["parts.json", *names]
        pieces = [(cut.path / name).read_bytes() for name in names]
        assert {len(piece) for piece in pieces[:-1]} == {1000}
        assert b"".join(pieces) == whole.read_bytes()
        assert verify(cut.path).sha256 == verify(whole).sha256

    @pytest.mark.parametrize("stop", [0, 1, 999, 1000, 2500, 5000])
    @pytest.mark.parametrize("damage", [None, "altered", "longer parts"])
    def test_an_interrupted_split_goes_on_after_checking_what_is_there(
        self, stop: int, damage: str | None, tmp_path: Path
    ) -> None:
        data = archived(described(small_contents(tmp_path / "source")), tmp_path / "a.zip").read_bytes()
        output = tmp_path / "a.parts"

        def write(pieces: Iterator[memoryview], size: int = 1000) -> int:
            return parts.write_parts(pieces, len(data), size, output, "a.zip", False)

        def until(end: int) -> Iterator[memoryview]:
            yield memoryview(data[:end])
            if end < len(data):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(until(stop), 1500 if damage == "longer parts" else 1000)
        assert not output.exists()
        staged = tmp_path / ".a.parts.partial" / "new"
        if damage == "altered" and stop > 500:
            with (staged / "a.zip.001").open("r+b") as file:
                file.seek(400)
                file.write(b"rot")
        (staged / "stray").write_bytes(b"x")
        kept = write(until(len(data)))
        assert kept == stop if damage is None else kept <= stop
        assert b"".join(path.read_bytes() for path in sorted(output.glob("a.zip.*"))) == data
        verify(output)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parts", "a.zip", "given", "source"]

    def test_two_at_once_do_not_write_into_each_others_parts(self, small: Path, tmp_path: Path) -> None:
        def pieces() -> Iterator[memoryview]:
            yield memoryview(bytes(1000))
            with pytest.raises(UsageError, match="being written by another run"):
                bundle(small, "android", tmp_path / "app" / "a.parts", split=1000)
            yield memoryview(bytes(500))

        parts.write_parts(pieces(), 1500, 1000, tmp_path / "app" / "a.parts", "a.zip", False)
        assert sum(path.stat().st_size for path in (tmp_path / "app" / "a.parts").glob("a.zip.*")) == 1500

    def test_a_hidden_folder_that_is_not_ours_is_left_alone(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "app" / ".a.parts.partial").mkdir()
        (tmp_path / "app" / ".a.parts.partial" / "diary").write_text("mine")
        with pytest.raises(UsageError, match="not made by lfm2-export"):
            bundle(small, "android", tmp_path / "app" / "a.parts", split=1000)
        assert (tmp_path / "app" / ".a.parts.partial" / "diary").read_text() == "mine"

    def test_an_archive_of_somebody_else_is_not_replaced(self, small: Path, tmp_path: Path) -> None:
        for path, data in ((tmp_path / "thesis.zip", b"PK and years of work"), (small / "model.pte", None)):
            before = path.read_bytes() if data is None else data
            path.write_bytes(before)
            with pytest.raises(UsageError, match="not made by `lfm2-export bundle`"):
                bundle(small, "android", path, force=True)
            assert path.read_bytes() == before

    def test_what_does_not_fit_the_disk_is_refused_before_the_model_runs(
        self, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = shutil.disk_usage(small)._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        monkeypatch.setattr(pack, "golden_cases", lambda *_: pytest.fail("the model ran"))
        with pytest.raises(UsageError, match="do not fit"):
            bundle(small, "android")
        assert [path.name for path in small.parent.iterdir()] == ["small"]

    def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
        self, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        genuine, written = parts._put, []

        def put(file, piece):
            if len(written) == 3:
                raise OSError(28, "No space left on device")
            written.append(piece)
            return genuine(file, piece)

        monkeypatch.setattr(parts, "_put", put)
        with pytest.raises(UsageError, match="No space left"):
            bundle(small, "android", split=1000)
        monkeypatch.setattr(parts, "_put", genuine)
        cut = bundle(small, "android", split=1000)
        assert cut.resumed > 0
        verify(cut.path)

    @pytest.mark.parametrize("limit", [100, 3000, "one byte less"])
    def test_a_budget_fails_before_anything_is_written(self, small: Path, limit: int | str, tmp_path: Path) -> None:
        size = bundle(small, "android", tmp_path / "measured.zip").size
        assert bundle(small, "android", tmp_path / "fits.zip", max_size=size).size == size
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError, match=r"more than --max-size .* largest part is .*nothing was written"):
            bundle(small, "android", max_size=size - 1 if isinstance(limit, str) else limit)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_budget_below_the_model_is_refused_before_it_runs(
        self, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pack, "golden_cases", lambda *_: pytest.fail("the model ran"))
        with pytest.raises(UsageError, match="more than --max-size"):
            bundle(small, "android", max_size=500)
        with pytest.raises(UsageError, match="more than 999 parts"):
            bundle(small, "android", split=1)

    def test_what_is_there_is_replaced_only_when_forced(self, small: Path) -> None:
        output = bundle(small, "android").path
        with pytest.raises(UsageError, match="--force"):
            bundle(small, "android")
        bundle(small, "android", force=True)
        cut = bundle(small, "android", split=2000).path
        with pytest.raises(UsageError, match="--force"):
            bundle(small, "android", split=1000)
        bundle(small, "android", split=1000, force=True)
        verify(cut)
        verify(output)
        assert sorted(path.name for path in small.parent.iterdir()) == ["small", "small-android.parts", output.name]

    def test_a_file_that_changes_meanwhile_is_noticed(
        self, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        genuine = pack.golden_cases

        def change(artifact, tokenizer):
            (small / "model.pte").write_bytes(b"\x10\0\0\0ET12other")
            return genuine(artifact, tokenizer)

        monkeypatch.setattr(pack, "golden_cases", change)
        with pytest.raises(UsageError, match="changed while it was packed"):
            bundle(small, "android")
        assert [path.name for path in small.parent.iterdir()] == ["small"]

    def test_an_artifact_that_breaks_the_contract_is_not_packed(self, small: Path) -> None:
        (small / "golden.json").write_text("{}")
        reseal(small)
        with pytest.raises(UsageError, match=r"holds a file golden\.json"):
            bundle(small, "android")
        (small / "golden.json").unlink()
        (small / "model.pte").write_bytes(b"no program")
        reseal(small)
        with pytest.raises(BundleError, match="not an ExecuTorch program"):
            bundle(small, "android")
        assert [path.name for path in small.parent.iterdir()] == ["small"]

    def test_an_npu_artifact_is_not_for_ios(self, small: Path) -> None:
        opened = open_artifact(small)
        opened.manifest.target = opened.manifest.recipe["target"] = "qnn"
        with pytest.raises(UsageError, match="NPU"):
            bundle(opened, "ios")

    def test_the_command_says_what_a_shipper_must_know(self, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as left:
            run(["bundle", str(small), "--for", "android", "--split", "2kB", "--quiet"])
        assert left.value.code == 0
        shown = capsys.readouterr().out
        for piece in ("executorch==1.5.1", "LICENSE", "not proven", "parts", "lfm2-export verify"):
            assert piece in shown
        (small / "LICENSE").unlink()
        reseal(small)
        with pytest.raises(SystemExit):
            run(["bundle", str(small), "--for", "desktop", "--quiet"])
        assert "no licence text" in capsys.readouterr().out


class _Tokenizer:
    """The part of a ChatTokenizer that packing asks for."""

    has_template, eos_ids = True, (7,)


@pytest.mark.parametrize(
    ("text", "size"),
    [("200MB", 200_000_000), ("1.5GB", 1_500_000_000), ("512MiB", 512 << 20), ("10", 10), ("3 kb", 3000)],
)
def test_sizes_are_read_as_stores_write_them(text: str, size: int) -> None:
    assert budget.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1MB", "1e9", "many", "1TB", "0.1", "1.5.GB", "9" * 50, "１MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        budget.parse_size(text)


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


def test_what_only_a_proof_reads_is_not_shipped(artifact: Artifact, packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact.folder, tmp_path / "nano")
    (folder / "quantized.safetensors").write_bytes(bytes(5000))
    reseal(folder)
    archive = bundle(folder, "android").path
    with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(packed) as plain:
        assert opened.namelist() == plain.namelist()
        assert set(json.loads(opened.read("bundle.json"))["files"]["manifest.json"]) == {"size", "sha256"}
    assert verify(archive).form == "archive"

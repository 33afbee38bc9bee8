"""Writing a bundle: in parts that can be gone on with, within a budget, over nothing that is somebody else's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from runner_program import reseal
from small_bundles import archived, described, small_artifact, small_contents

from lfm2_export import bundle, verify
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bundle import budget, pack, parts
from lfm2_export.cli.main import run
from lfm2_export.errors import BundleError, UsageError


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

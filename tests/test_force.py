"""`--force` replaces what this tool made and nothing else; a name that came into being meanwhile is left alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save_transformers, tiny_config
from command import code_of

from lfm2_export import recipes
from lfm2_export.checkpoint import nano
from lfm2_export.errors import UsageError
from lfm2_export.files import FolderKind, rename, staged_folder
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.parity.report import ParityReport, RuntimeReport
from lfm2_export.pipeline import export
from lfm2_export.plots import files as plots
from lfm2_export.progress import Progress
from lfm2_export.report import outputs
from lfm2_export.tune.search import write_recipe

Contents = Callable[[Path], dict[str, bytes]]
KIND = FolderKind("test", lambda _: {"one"})


@pytest.fixture(scope="module")
def _artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("force") / "artifact"
    export("nano", "onnx-int4", folder, overrides=["window=64"], verify=False)
    return folder


@pytest.fixture
def artifact(_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_artifact, tmp_path / "work" / "artifact"))


def again(output: Path, source: str = "nano") -> int:
    return code_of(
        "export", source, "-r", "onnx-fp32", "-o", str(output), "--window", "64", "--no-verify", "-q", "--force"
    )


class TestForceKeepsWhatOthersMade:
    def test_a_fine_tune(self, tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]) -> None:
        tuned = tmp_path / "my-fine-tune"
        save_transformers(tuned)
        (tuned / "README.md").write_text("weeks of training")
        before = contents(tuned)
        assert again(tuned) == 2
        assert "was not made by `lfm2-export export`" in capsys.readouterr().err
        assert code_of("init", "--size", str(tuned / "config.json"), "-o", str(tuned), "--force", "-q") == 2
        assert "not marked as random" in capsys.readouterr().err
        assert contents(tuned) == before

    def test_the_checkpoint_that_is_read_and_the_folder_around_it(
        self, artifact: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = Path(shutil.copytree(nano.PATH, artifact / "source"))
        before = contents(artifact)
        for output in (source, artifact, artifact.parent, source / ".." / "source"):
            assert again(output, str(source)) == 2
            assert "which this is made from" in capsys.readouterr().err
        assert contents(artifact) == before

    def test_a_web_app_with_a_manifest_of_its_own(
        self, tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app = tmp_path / "webapp"
        app.mkdir()
        (app / "manifest.json").write_text('{"name": "My app", "start_url": "/"}')
        (app / "app.js").write_text("alert()")
        before = contents(app)
        assert code_of("init", "--size", "350m", "-o", str(app), "--force", "-q") == 2
        assert again(app) == 2
        assert "remove it yourself" in capsys.readouterr().err
        assert contents(app) == before

    @pytest.mark.parametrize("stray", ["notes.txt", "onnx/notes.txt", "my/own/notes.txt", "manifest.json.bak"])
    def test_a_file_laid_into_an_artifact(
        self, stray: str, artifact: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (artifact / stray).parent.mkdir(parents=True, exist_ok=True)
        (artifact / stray).write_text("mine")
        before = contents(artifact)
        assert again(artifact) == 2
        assert str(artifact / stray) in capsys.readouterr().err
        assert contents(artifact) == before

    def test_a_link_or_an_empty_folder_laid_into_an_artifact(self, artifact: Path, tmp_path: Path) -> None:
        (artifact / "empty").mkdir()
        assert again(artifact) == 2
        (artifact / "empty").rmdir()
        listed = artifact / "tokenizer.json"
        listed.rename(tmp_path / "tokenizer.json")
        listed.symlink_to(tmp_path / "tokenizer.json")
        assert again(artifact) == 2
        assert listed.is_symlink()

    def test_the_tokenizer_that_a_user_laid_beside_random_weights(self, tiny_checkpoint: Path) -> None:
        with pytest.raises(UsageError, match=r"none of the files that `lfm2-export init` wrote"):
            init_checkpoint(tiny_config(), tiny_checkpoint, seed=5, force=True)

    def test_the_working_directory_and_those_above_it(
        self, artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(artifact / "onnx")
        for output in (artifact, Path(".."), Path(), Path.cwd()):
            assert again(output) == 2
            assert "working directory" in capsys.readouterr().err

    def test_a_git_repository(self, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
        subprocess.run(["git", "init", "--quiet", artifact], check=True)
        assert again(artifact) == 2
        assert "git repository" in capsys.readouterr().err

    def test_what_another_command_made(self, artifact: Path) -> None:
        assert code_of("init", "--size", "350m", "-o", str(artifact), "--force", "-q") == 2
        assert (artifact / "manifest.json").is_file()


class TestForceReplacesWhatIsOurs:
    def test_an_artifact_even_a_damaged_one(self, artifact: Path) -> None:
        (artifact / "tokenizer.json").unlink()
        (artifact / "config.json").write_text("{}")
        assert again(artifact) == 0
        assert code_of("inspect", str(artifact), "--json") == 0
        assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        init_checkpoint(tiny_config(), tmp_path / "empty", force=True)
        assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.fixture(params=["in one step", "as other systems do"])
def _renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "in one step":
        monkeypatch.setattr(rename, "_flagged", lambda *_: False)


@pytest.mark.usefixtures("_renames")
class TestTheLastStep:
    def test_the_slower_of_two_keeps_its_work_beside(
        self, tmp_path: Path, contents: Contents, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "out"

        def slower() -> None:
            with staged_folder(output, False, KIND) as one, staged_folder(output, False, KIND) as other:
                (one / "one").write_text("slower")
                (other / "one").write_text("faster")

        with pytest.raises(UsageError, match=r"kept as .*out\.1") as refused:
            slower()
        assert refused.value.exit_code == 2
        assert contents(tmp_path) == {"out/one": b"faster", "out.1/one": b"slower"}

    @pytest.mark.parametrize("kind", ["file", "link", "folder"])
    def test_a_name_taken_meanwhile_is_left_alone(self, kind: str, tmp_path: Path) -> None:
        output = tmp_path / "out"
        (tmp_path / "out.1").write_text("theirs too")

        def write() -> None:
            with staged_folder(output, True, KIND) as staging:
                (staging / "one").write_text("ours")
                if kind == "file":
                    output.write_text("theirs")
                elif kind == "link":
                    output.symlink_to(tmp_path / "nowhere")
                else:
                    output.mkdir()
                    (output / "thesis").write_text("theirs")

        with pytest.raises(UsageError, match=r"out\.2"):
            write()
        assert (tmp_path / "out.2" / "one").read_text() == "ours"
        assert output.is_symlink() if kind == "link" else output.exists()

    def test_onto_a_taken_name_nothing_is_renamed(self, tmp_path: Path) -> None:
        for name in ("file", "other"):
            (tmp_path / name).write_text(name)
        for name in ("folder", "full"):
            (tmp_path / name).mkdir()
        (tmp_path / "full" / "in").write_text("it")
        for source, target in [("file", "other"), ("file", "full"), ("folder", "full"), ("folder", "file")]:
            with pytest.raises(FileExistsError):
                rename.onto_free_name(tmp_path / source, tmp_path / target)
        assert (tmp_path / "other").read_text() == "other"
        assert (tmp_path / "file").read_text() == "file"
        rename.onto_free_name(tmp_path / "file", tmp_path / "free")
        assert (tmp_path / "free").read_text() == "file"
        assert not (tmp_path / "file").exists()

    @pytest.mark.parametrize(("name", "plainly"), [("new", False), ("new", True), ("old", True)])
    def test_the_old_folder_is_put_back_when_a_rename_fails(
        self, name: str, plainly: bool, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That of the new one onto the name, or that by which the old one goes for good."""
        output, genuine = tmp_path / "out", Path.rename
        with staged_folder(output, False, KIND) as staging:
            (staging / "one").write_text("old")
        failed = []

        def fail(source: Path, target: Path) -> Path:
            if source.name == name and not failed:
                failed.append(target)
                raise OSError(5, "Input/output error")
            return genuine(source, target)

        monkeypatch.setattr(Path, "rename", fail)
        if plainly:
            monkeypatch.setattr(rename, "_flagged", lambda *_: False)

        def write() -> None:
            with staged_folder(output, True, KIND) as staging:
                (staging / "one").write_text("new")

        with pytest.raises(UsageError, match=r"Input/output error.*out\.1"):
            write()
        assert failed
        assert contents(tmp_path) == {"out/one": b"old", "out.1/one": b"new"}


def test_of_two_exports_at_once_one_says_that_its_name_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, raced = tmp_path / "out", []

    def progress(name: str) -> None:
        if name == "checksums" and not raced:
            raced.append(export("nano", "onnx-int4", output, overrides=["window=64"], verify=False))

    with pytest.raises(UsageError, match=r"out\.1"):
        export("nano", "onnx-int8", output, overrides=["window=64"], verify=False, progress=Progress(progress))
    assert code_of("inspect", str(output), "--json") == 0
    assert code_of("inspect", str(tmp_path / "out.1"), "--json") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.1"]


NOTES = "What the others wrote, quoted:\n<!-- made by lfm2-export -->\n# made by lfm2-export tune\n"
REPORTS = ("page.html", "note.md", "ci.xml", "all.json")


class TestFiles:
    """A file is replaced when it begins as ours do."""

    @pytest.fixture
    def report(self) -> ParityReport:
        return ParityReport(
            artifact="a",
            recipe="r",
            source="nano",
            weights_sha256="0" * 64,
            random_weights=False,
            text="none",
            size_bytes=1,
            versions={},
            runtimes=[RuntimeReport(runtime="eager", reason="a test")],
        )

    @pytest.mark.parametrize("name", REPORTS)
    def test_a_report(self, name: str, report: ParityReport, tmp_path: Path) -> None:
        path = tmp_path / name
        outputs.write(report, [path])
        with pytest.raises(UsageError, match="exists already"):
            outputs.write(report, [path])
        first = path.read_bytes()
        outputs.write(report.model_copy(update={"artifact": "b"}), [path], force=True)
        assert path.read_bytes() != first
        for theirs in (NOTES.encode(), b"{}", b'<testsuites name="pytest"/>', b"<!doctype html><p>mine", b""):
            path.write_bytes(theirs)
            for attempt in (lambda: outputs.check([path], True), lambda: outputs.write(report, [path], force=True)):
                with pytest.raises(UsageError, match="will not replace it; remove it yourself") as refused:
                    attempt()
                assert refused.value.exit_code == 2
            assert path.read_bytes() == theirs

    @pytest.mark.parametrize("suffix", outputs.page.COMPARISONS)
    def test_a_comparison(self, suffix: str, artifact: Path, tmp_path: Path) -> None:
        path = tmp_path / f"both{suffix}"
        words = ("compare", str(artifact), str(artifact), "--report", str(path))
        assert code_of(*words) == 0
        assert code_of(*words, "--force") == 0
        path.write_text(NOTES)
        assert code_of(*words, "--force") == 2
        assert path.read_text() == NOTES

    @pytest.mark.parametrize("suffix", [".png", ".svg"])
    def test_a_plot(self, suffix: str, tmp_path: Path) -> None:
        from matplotlib.figure import Figure

        path = tmp_path / f"plot{suffix}"
        plots.write(Figure(), path, False)
        first = path.read_bytes()
        plots.write(Figure(), path, True)
        assert path.read_bytes() == first
        Figure().savefig(path)  # matplotlib's own, of another program
        with pytest.raises(UsageError, match="remove it yourself"):
            plots.check(path, True)

    def test_a_tuned_recipe(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        write_recipe(path, recipes.load("onnx-int4"), False)
        write_recipe(path, recipes.load("onnx-int8"), True)
        assert recipes.load(str(path)).quantization == recipes.load("onnx-int8").quantization
        path.write_text(NOTES)
        with pytest.raises(UsageError, match="not made by `lfm2-export tune`"):
            write_recipe(path, recipes.load("onnx-int4"), True)
        assert path.read_text() == NOTES

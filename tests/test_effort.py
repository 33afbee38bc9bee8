"""`--effort quick`: the same questions and laws, of at most a fifth of the tokens; everything says that it was so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import code_of

from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.bundle.verify import verify
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.effort import effort_of
from lfm2_export.parity.prove import prove
from lfm2_export.parity.report import ParityReport
from lfm2_export.report.compare import compare
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession

QUICK = "(quick effort)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick export of nano with its reports beside it."""
    output = tmp_path_factory.mktemp("quick") / "nano"
    reports = [argument for kind in ("json", "md", "xml", "html") for argument in ("--report", f"{output}.{kind}")]
    command = ["export", "nano", "--recipe", "onnx-int8", "--window", "64", "--effort", "quick", "--quiet"]
    assert code_of(*command, "--output", str(output), *reports) == 0
    return output


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return open_artifact(folder)


def test_manifest_reports_and_commands_say_that_it_was_quick(folder: Path, artifact: Artifact, capsys) -> None:
    assert artifact.manifest.effort == "quick"
    report = ParityReport.model_validate_json(Path(f"{folder}.json").read_text())
    assert report.passed
    assert (report.effort, report.verdict) == ("quick", f"proven {QUICK}")
    assert all("--effort quick" in line for line in report.reproduce if line.startswith("lfm2-export"))
    assert f"proven {QUICK}" in Path(f"{folder}.md").read_text()
    assert '<property name="effort" value="quick"/>' in Path(f"{folder}.xml").read_text()
    page = Path(f"{folder}.html").read_text()
    assert f"Proven {QUICK}" in page
    assert "--effort full" in page
    assert code_of("inspect", str(folder)) == 0
    assert QUICK in capsys.readouterr().out
    assert verify(folder).effort == "quick"
    (verdict,) = (row for row in compare(folder, Path(f"{folder}.json")).rows if row.name == "parity")
    assert (verdict.left, verdict.right) == (f"proven {QUICK}", f"proven {QUICK}")


def test_quick_judges_the_same_gates_for_at_most_a_fifth_of_the_tokens(
    folder: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()
    for name in ("prefill", "verify"):
        _count(monkeypatch, name, calls)
    reports, work = {}, {}
    for extent in ("full", "quick"):
        calls.clear()
        reports[extent] = prove(artifact, open_checkpoint("nano"), ["onnxruntime"], extent)
        work[extent] = sum(calls)
    full, quick = ([gate.name for gate in reports[extent].gates] for extent in ("full", "quick"))
    assert quick == full
    assert reports["full"].runtimes[0].quality.tokens > 2000
    assert (reports["full"].effort, reports["full"].verdict) == ("full", "proven")
    assert work["quick"] <= work["full"] / 5, work
    exported = ParityReport.model_validate_json(Path(f"{folder}.json").read_text())  # held to the lowered model itself
    (ours,) = (each for each in exported.runtimes if each.runtime == "onnxruntime")
    assert ours.gates == reports["quick"].runtimes[0].gates  # held to one that was made again
    skipped = [gate for gate in reports["quick"].gates if gate.reason and "--effort full" in gate.reason]
    assert [gate.name for gate in skipped] == ["lowering: weights alone", "law: explicit = resident"]


def test_quick_fills_no_window_where_the_state_cannot_be_given(artifact: Artifact) -> None:
    pytest.importorskip("onnxruntime_genai")
    report = prove(artifact, open_checkpoint("nano"), ["genai"], "quick")
    assert report.passed
    (edge,) = (gate for gate in report.gates if gate.name == "law: window edge")
    assert edge.status == "skipped"
    assert "--effort full" in (edge.reason or "")


def _count(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[int]) -> None:
    called = getattr(OnnxRuntimeSession, name)

    def counted(session, tokens, *more):
        calls.append(len(tokens))
        return called(session, tokens, *more)

    monkeypatch.setattr(OnnxRuntimeSession, name, counted)


def test_parity_takes_an_effort_too(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("parity", str(artifact.folder), "--effort", "quick", "--runtime", "onnxruntime", "--json") == 0
    assert json.loads(capsys.readouterr().out)["effort"] == "quick"


@pytest.mark.parametrize("command", [["export", "nano"], ["parity", "nowhere"]])
def test_an_unknown_effort_is_refused_before_anything_else(command: list[str], capsys) -> None:
    assert code_of(*command, "--effort", "thorough") == 2
    assert "--effort 'thorough': expected full or quick" in capsys.readouterr().err


def test_a_bundle_wants_a_full_proof_unless_told_otherwise(artifact: Artifact, tmp_path: Path, capsys) -> None:
    output = tmp_path / "nano.zip"
    command = ["bundle", str(artifact.folder), "--for", "desktop", "--output", str(output), "--quiet"]
    assert code_of(*command) == 2
    assert "--allow-quick" in capsys.readouterr().err
    assert not output.exists()
    assert code_of(*command, "--allow-quick") == 0
    assert "quick effort" in capsys.readouterr().out
    assert code_of("verify", str(output)) == 0
    assert "quick effort" in capsys.readouterr().out


def test_slow_processors_are_asked_less_at_either_effort() -> None:
    for extent in ("full", "quick"):
        plain, arm, npu = (effort_of(extent, emulated) for emulated in ([], ["CPU"], ["CPU", "NPU"]))
        assert plain.quality_tokens > arm.quality_tokens > npu.quality_tokens
        assert {plain.name, arm.name, npu.name} == {extent}

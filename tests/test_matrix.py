"""A matrix: what a plan may say, that each cell is what a single export makes, and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import tiny_config
from command import code_of
from documents import ROOT, blocks
from junitparser import JUnitXml
from report_readers import Page, iter_cases

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.errors import MissingDependencyError, PlanError, RecipeError, UsageError
from lfm2_export.matrix import pages, plan
from lfm2_export.matrix.outcome import Matrix, Outcome, Row
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import export
from lfm2_export.runtimes import onnxruntime_packed

GOOD = """\
checkpoints:
  - nano
  - {source: ./my-lora, base: ./my-lfm2}
recipes:
  - xnnpack-int8
  - recipe: onnx-int4
    set: [weights=mse]
    name: int4-mse
runtimes: [native]
exclude: [nano-int4-mse]
effort: quick
"""

HOSTILE = {
    "unknown key": (
        GOOD.replace("runtimes", "runtime"),
        ":9: runtime: extra inputs are not permitted (did you mean runtimes?)",
    ),
    "no checkpoint": (
        GOOD.replace("  - nano\n  - {source: ./my-lora, base: ./my-lfm2}\n", "  []\n"),
        ":1: checkpoints",
    ),
    "no recipes": (GOOD.partition("recipes:")[0], "recipes: field required"),
    "an empty word": (GOOD.replace("- nano", '- ""'), ":2: checkpoints.0.source"),
    "a number for a checkpoint": (GOOD.replace("- nano", "- 7"), ":2: checkpoints.0"),
    "a name that is a path": (GOOD.replace("int4-mse", "../mine"), ":8: recipes.1.name"),
    "an unknown effort": (GOOD.replace("quick", "some"), ":11: effort"),
    "a word for a list": (GOOD.replace("[native]", "native"), ":9: runtimes"),
    "a phone without its runner": (GOOD + "phone: {steps: 3}\n", ":12: phone.runner"),
    "broken YAML": (GOOD + "set: [", "not valid YAML"),
    "a list": ("- a\n- b\n", "a plan is a mapping"),
    "empty": ("", "a plan is a mapping"),
    "binary": ("\x00\x01\x02", "not valid YAML"),
    "a Python object": ("!!python/object/apply:os.system [echo]", "a plan is a mapping"),
    "huge": ("#" * 2_000_000, "larger than"),
    "a billion laughs": (GOOD + "a: &a [x, x]\nb: &b [*a, *a]\n", "aliases"),
    "half a character": (GOOD + 'set: ["\\ud800"]\n', "plain values"),
    "a line break in a key": (GOOD + '"a\\nb": c\n', "a\\nb"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_plan_is_refused_in_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    text, expected = HOSTILE[name]
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        plan.read_plan(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert expected in message


def test_the_cells_are_checkpoints_by_recipes() -> None:
    found = plan.cells(plan.parse(GOOD.encode(), "plan"))
    names = ["nano-xnnpack-int8", "nano-int4-mse", "my-lora-xnnpack-int8", "my-lora-int4-mse"]
    assert [cell.name for cell in found] == names
    assert [cell.excluded for cell in found] == [False, True, False, False]
    assert found[3].overrides == ("weights=mse",)
    assert found[3].checkpoint.base == "./my-lfm2"


@pytest.mark.parametrize(
    ("old", "new", "error", "expected"),
    [
        ("./my-lora, base: ./my-lfm2", "./elsewhere/nano", PlanError, "checkpoints: two are called 'nano'"),
        ("name: int4-mse", "name: XNNPACK-int8", PlanError, "recipes: two are called 'xnnpack-int8'"),
        ("nano-int4-mse", "nano-int4", PlanError, "'nano-int4' is no cell of this plan (did you mean nano-int4-mse?)"),
        ("[native]", "[genai]", None, ""),
        ("[native]", "[coreml]", PlanError, "coreml runs coreml in explicit form, which none of the plan's recipes"),
        ("[native]", "[natve]", UsageError, "did you mean native"),
        ("onnx-int4", "onnx-int5", RecipeError, "no recipe 'onnx-int5'"),
        ("weights=mse", "wieghts=mse", RecipeError, "did you mean weights"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_before_any_work(
    old: str, new: str, error: type[Exception] | None, expected: str
) -> None:
    written = plan.parse(GOOD.replace(old, new).encode(), "plan")
    if error is None:
        plan.cells(written)
        return
    with pytest.raises(error) as caught:
        plan.cells(written)
    assert expected in str(caught.value)


def test_the_plans_in_the_documents_are_plans() -> None:
    written = [block.text for block in blocks(ROOT / "docs" / "matrix.md") if block.language == "yaml"]
    assert len(written) == 1
    for text in written:
        assert len(plan.cells(plan.parse(text.encode(), "docs/matrix.md"))) == 4 * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a shape that every target takes."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    init_checkpoint(replace(tiny_config(), head_dim=16, hidden_size=32), folder)
    return folder


def matrix(folder: Path, text: str, *more: str) -> tuple[int, dict[str, Outcome]]:
    """The exit code of the command, and its cells."""
    written = folder / "plan.yaml"
    written.write_text(text)
    code = code_of("matrix", str(written), "--output", str(folder / "out"), "--quiet", *more)
    made = Matrix.model_validate_json((folder / "out" / "matrix.json").read_text())
    return code, {cell.cell: cell for cell in made.cells}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


QUICK = """\
checkpoints: [{{source: {checkpoint}, name: tiny}}]
recipes: [{{recipe: onnx-fp32, name: fp32}}]
set: [window=32]
effort: quick
"""


@pytest.mark.slow
def test_a_failed_cell_stops_no_other_and_a_proven_one_is_what_export_makes(checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / "config.json").write_text("{")
    text = f"""\
checkpoints: [{broken}, {{source: {checkpoint}, name: tiny}}]
recipes:
  - {{recipe: onnx-fp32, name: impossible, set: [gates.lowering.max_error=1.0e-12]}}
  - {{recipe: onnx-fp32, name: fp32}}
  - {{recipe: onnx-int8, name: int8}}
runtimes: [genai, onnxruntime-packed]
exclude: [tiny-int8, broken-int8]
set: [window=32]
effort: quick
"""
    code, cells = matrix(tmp_path, text)
    assert code == 1
    assert [cell.status for cell in cells.values()] == [
        *("failed", "failed", "excluded"),
        *("failed", "proven", "excluded"),
    ]
    assert "config.json" in str(cells["broken-fp32"].reason)
    assert "lowering: max error is" in str(cells["tiny-impossible"].reason)
    out = tmp_path / "out"
    assert [path.name for path in (out / "artifacts").iterdir()] == ["tiny-fp32"]
    assert sorted(path.name for path in (out / "reports").iterdir()) == [
        f"tiny-{name}{suffix}" for name in ("fp32", "impossible") for suffix in (".html", ".json")
    ]
    changes = ["window=32"]
    export(str(checkpoint), "onnx-fp32", tmp_path / "alone", overrides=changes, effort="quick")
    assert files(out / "artifacts" / "tiny-fp32") == files(tmp_path / "alone")

    document = JUnitXml.fromfile(str(out / "junit.xml"))
    results = {
        (case.classname, case.name): [type(each).__name__ for each in case.result] for case in iter_cases(document)
    }
    assert results["tiny-fp32", "cell"] == results["tiny-fp32", "onnxruntime"] == []
    assert results["tiny-impossible", "cell"] == results["tiny-impossible", "onnxruntime"] == ["Failure"]
    assert results["broken-fp32", "cell"] == ["Failure"]
    assert results["tiny-int8", "cell"] == ["Skipped"]
    seen = Page((out / "index.html").read_text())
    assert {value for name, value in seen.attributes if name == "href" and value != "data:,"} == {
        "reports/tiny-fp32.html",
        "reports/tiny-impossible.html",
    }
    assert "1 proven, 3 failed, 2 excluded" in seen.text
    assert "❌ 1 proven, 3 failed, 2 excluded (quick effort)" in (out / "matrix.md").read_text()


@pytest.mark.slow
def test_what_stands_is_kept_until_its_inputs_change(checkpoint: Path, tmp_path: Path) -> None:
    text = QUICK.format(checkpoint=checkpoint)
    code, cells = matrix(tmp_path, text)
    assert code == 0
    made = tmp_path / "out" / "artifacts" / "tiny-fp32"
    first, written = files(made), (made / "manifest.json").stat().st_mtime_ns

    code, cells = matrix(tmp_path, text)
    assert code == 0
    assert cells["tiny-fp32"].kept
    assert (made / "manifest.json").stat().st_mtime_ns == written

    wider = text.replace("window=32", "window=48")
    code, cells = matrix(tmp_path, wider)
    assert code == 1
    assert "was made from other inputs (recipe); --force" in str(cells["tiny-fp32"].reason)
    assert files(made) == first
    assert matrix(tmp_path, text)[1]["tiny-fp32"].kept  # what was refused has spoiled nothing

    assert matrix(tmp_path, wider, "--force")[0] == 0
    assert open_artifact(made).manifest.window == 48
    (made / "config.json").write_bytes(b"{}")  # damaged: it does not stand
    code, cells = matrix(tmp_path, wider)
    assert code == 0
    assert not cells["tiny-fp32"].kept
    open_artifact(made)


@pytest.mark.slow
def test_a_cell_that_was_interrupted_is_made_again(checkpoint: Path, tmp_path: Path) -> None:
    text = QUICK.format(checkpoint=checkpoint)
    assert matrix(tmp_path, text)[0] == 0
    record = tmp_path / "out" / "cells" / "tiny-fp32.json"
    before = Outcome.model_validate_json(record.read_text())
    begun = Outcome(cell="tiny-fp32", checkpoint="tiny", recipe="fp32", status="begun")
    record.write_text(begun.model_dump_json(indent=2))  # killed when the artifact had its name, and no more
    code, cells = matrix(tmp_path, text)
    assert code == 0
    assert not cells["tiny-fp32"].kept
    assert cells["tiny-fp32"].manifest_sha256 == before.manifest_sha256

    record.unlink()  # then it may be somebody's own export
    for _ in range(2):
        code, cells = matrix(tmp_path, text)
        assert code == 1
        assert "exists and is none of this matrix's" in str(cells["tiny-fp32"].reason)
    open_artifact(tmp_path / "out" / "artifacts" / "tiny-fp32")


@pytest.mark.slow
def test_a_runtime_that_the_plan_names_and_that_is_not_here_leaves_the_cell_unproven(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> str:
        raise MissingDependencyError("it is not here")

    monkeypatch.setattr(onnxruntime_packed.RUNTIME, "version", absent)
    code, cells = matrix(tmp_path, QUICK.format(checkpoint=checkpoint) + "runtimes: [onnxruntime-packed, genai]\n")
    assert code == 3
    cell = cells["tiny-fp32"]
    assert (cell.status, cell.reason) == ("not proven", "onnxruntime-packed: it is not here")
    assert {row.runtime: row.status for row in cell.rows}["onnxruntime"] == "pass"
    document = JUnitXml.fromfile(str(tmp_path / "out" / "junit.xml"))
    assert (document.failures, document.skipped) == (0, 2 + [row.status for row in cell.rows].count("not meant"))


def test_no_name_becomes_markup() -> None:
    hostile = "<script>alert('x')</script>|[a](javascript:b) \x07"
    row = Row(runtime=hostile, status="fail", reason=hostile)
    cell = Outcome(
        cell=hostile, checkpoint=hostile, recipe=hostile, status="failed", reason=hostile, rows=[row], machine=hostile
    )
    found = Matrix(plan=hostile, effort="full", cells=[cell])
    page = Page(pages.html(found))
    assert "script" not in page.tags
    assert page.text.count("alert('x')") >= 6
    table = [line for line in pages.markdown(found).splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert "<script" not in pages.markdown(found)
    assert JUnitXml.fromstring(pages.junit(found)).failures == 2


def test_nothing_but_proof_is_a_pass() -> None:
    def of(*statuses: str) -> Matrix:
        cells = [Outcome(cell=str(n), checkpoint="c", recipe="r", status=s) for n, s in enumerate(statuses)]  # type: ignore[arg-type]
        return Matrix(plan="p", effort="full", cells=cells)

    assert of("proven", "excluded").exit_code == 0
    assert of("proven", "not proven").exit_code == 3
    assert of("excluded").exit_code == 3
    assert of("proven", "failed", "not proven").exit_code == 1
    assert of("proven", "waiting").exit_code == 1
    assert json.loads(of("not proven").model_dump_json())["passed"] is False


def test_anothers_page_is_not_replaced(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    (tmp_path / "plan.yaml").write_text(QUICK.format(checkpoint=checkpoint))
    assert code_of("matrix", str(tmp_path / "plan.yaml"), "-o", str(tmp_path / "out"), "-q") == 2
    assert "index.html was not made by" in capsys.readouterr().err
    assert (tmp_path / "out" / "index.html").read_text() == "mine"

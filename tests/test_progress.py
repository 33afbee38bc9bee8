"""What shows while work goes on: a bar on a terminal, whose parts are the proof's own work; lines elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lfm2_export.cli import console
from lfm2_export.cli.bar import Bar
from lfm2_export.evaluate import text
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.prove import prove
from lfm2_export.pipeline import export
from lfm2_export.progress import Progress

SMALL = Effort(quality_tokens=50, questions=2, prompts=1, continuation=4, law_tokens=24, case_steps=8)


class Recorded(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.expected, self.stages, self.advanced = 0.0, list[tuple[str, float]](), list[float]()

    def __call__(self, message: str, work: float = 0.0) -> None:
        self.stages.append((message, work))
        self.advanced.append(0.0)

    def expect(self, work: float) -> None:
        self.expected = work

    def advance(self, work: float) -> None:
        self.advanced[-1] += work


@pytest.mark.parametrize(("recipe", "parts"), [("onnx-int8", 1), ("onnx-fp32", 4)])
def test_the_announced_stages_of_a_proof_are_the_expected_work(
    recipe: str, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effort = SMALL
    if parts > 1:
        monkeypatch.setattr(text, "PORTION", 20)
        effort = replace(SMALL, quality_tokens=100)
    artifact, _ = export("nano", recipe, tmp_path / "nano", overrides=["window=64"], verify=False)
    told = Recorded()
    prove(artifact, open_checkpoint("nano"), effort=effort, progress=told)
    assert sum(work for _, work in told.stages) == pytest.approx(told.expected)
    assert sum("layer by layer" in what for what, _ in told.stages) == parts
    for (what, work), done in zip(told.stages, told.advanced, strict=True):
        if "against fp32" in what or "layer by layer" in what:
            assert done == pytest.approx(work, rel=0.05), what  # counted call by call, layer by layer


def test_a_bar_shows_what_is_done_how_far_it_is_and_how_long_it_takes() -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=120)) as bar:
        bar("reading [weights]")
        bar._display.refresh()
        assert "%" not in screen.getvalue()
        bar.expect(10)
        bar("cases", 4)
        bar.advance(3)
        bar.advance(3)  # more than was expected of it
        bar._display.refresh()
        assert "40 %, about 0 s left" in screen.getvalue()
        bar("fp32", 6)
        bar.advance(3)
        bar._display.refresh()
        assert "70 %, about 0 s left" in screen.getvalue()
    assert "reading [weights]" in screen.getvalue()


def test_elsewhere_each_step_is_a_line_and_quiet_is_nothing(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "err", Console(stderr=True, highlight=False))
    for quiet in (False, True):
        with console.progress(quiet) as progress:
            progress.expect(2)
            progress("packing", 2)
            progress.advance(1)
    captured = capsys.readouterr()
    assert captured.err.count("packing") == 1
    assert "%" not in captured.err
    assert captured.out == ""

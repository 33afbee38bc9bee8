"""The comparison of two proofs sees a figure that changed, one that is gone, and what is only the order of sums."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity_reports import a_report
from typer.testing import CliRunner

from benchmarks.same_reports import app

NAME = "onnxruntime"
FLOOR = {"max_error": 0.02, "logits_error": 0.02, "state_error": 0.01, "mean_absolute_error": 0.1, "rms_error": 0.01}


def _document() -> dict[str, Any]:
    document = json.loads(a_report(NAME).model_dump_json())
    document["runtimes"][0]["laws"] = [["reset", 0.0, 0.0, None], ["chunked prefill", 0.03, 0.06, None]]
    document["runtimes"][0]["lowering"] = {"max_error": 0.03, "floor": {**FLOOR, "worst_case": "prefill"}}
    _tokens(document)[0] = 0.01147
    return document


@pytest.fixture
def compared(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], tuple[int, str]]:
    """Exit code and output, for a report beside one in which something was changed."""

    def run(change: Callable[[dict[str, Any]], object]) -> tuple[int, str]:
        changed = _document()
        change(changed)
        paths = tmp_path / "left.json", tmp_path / "right.json"
        for path, document in zip(paths, (_document(), changed), strict=True):
            path.write_text(json.dumps(document))
        done = CliRunner().invoke(app, list(map(str, paths)))
        return done.exit_code, done.output

    return run


def _quality(document: dict[str, Any]) -> dict[str, Any]:
    return document["runtimes"][0]["quality"]


def _tokens(document: dict[str, Any]) -> list[float]:
    return document["runtimes"][0]["details"]["tokens"]["kld"]


def test_the_same_figures_are_the_same_whatever_the_clock_said(compared) -> None:
    code, output = compared(lambda report: report["runtimes"][0].update(load_seconds=9.0, seconds=3.0))
    assert code == 0
    assert "0 but for the order of sums, 0 within the noise of rounding, 0 different" in output


def test_the_order_of_sums_is_no_difference_and_more_is(compared) -> None:
    code, output = compared(lambda report: _quality(report).update(mean_kld=_quality(report)["mean_kld"] * (1 + 5e-6)))
    assert (code, "1 but for the order of sums" in output) == (0, True)
    code, output = compared(lambda report: _quality(report).update(mean_kld=_quality(report)["mean_kld"] + 1e-3))
    assert (code, f"{NAME}/quality.mean_kld" in output) == (1, True)
    code, output = compared(lambda report: _quality(report).update(tokens=19))
    assert (code, f"differs    {NAME}/quality.tokens: 20 | 19" in output) == (1, True)


def test_what_a_report_rounds_may_tip_by_one_in_the_last_digit(compared) -> None:
    kld = f"{NAME}/details.tokens.kld.0"
    code, output = compared(lambda report: _tokens(report).__setitem__(0, 0.01148))
    assert (code, kld in output, "1 but for the order of sums" in output) == (0, False, True)
    code, output = compared(lambda report: _tokens(report).__setitem__(0, 0.01149))
    assert (code, kld in output) == (1, True)


def test_rounding_noise_counts_for_question_1_alone_and_only_as_far_as_it_goes(compared) -> None:
    code, output = compared(lambda report: report["runtimes"][0]["laws"][1].__setitem__(1, 0.045))
    assert (code, f"noise      {NAME}/laws.chunked prefill.0" in output) == (0, True)
    code, output = compared(lambda report: report["runtimes"][0]["lowering"].update(max_error=0.051))
    assert (code, f"differs    {NAME}/lowering.max_error" in output) == (1, True)


def test_a_figure_that_is_gone_is_told_apart_from_one_that_is_new(compared) -> None:
    code, output = compared(lambda report: _quality(report).pop("top1"))
    assert (code, f"left only  {NAME}/quality.top1" in output) == (1, True)
    code, output = compared(lambda report: _quality(report).update(new=1.0))
    assert (code, f"right only {NAME}/quality.new" in output) == (0, True)
    code, output = compared(lambda report: report["runtimes"].pop(0))
    assert code == 1
    code, output = compared(lambda report: report["runtimes"][0]["gates"][0].update(status="fail"))
    assert (code, "gates.lowering: max error.0: pass | fail" in output) == (1, True)

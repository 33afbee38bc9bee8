"""A quick proof reads little text, and leaves to chance what a sample of that size does; a full one nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lfm2_export.artifact.manifest import GateResult
from lfm2_export.evaluate.metrics import quantization_loss
from lfm2_export.parity.effort import Effort, effort_of
from lfm2_export.parity.report import RuntimeReport, judge
from lfm2_export.recipes import load

GATES = load("xnnpack-int4").gates
TOKENS = 224  # of nano's held-out chats that a quick proof reads
QUICK, FULL = effort_of("quick", ()), effort_of("full", ())
LOGITS = np.random.default_rng(0).normal(size=(TOKENS, 8)).astype(np.float32)
MEASURED = quantization_loss(LOGITS, LOGITS + 0.1, np.arange(TOKENS) % 8)


def gate_of(name: str, effort: Effort | None, *, answered: float = 1.0, random: bool = False, **figures) -> GateResult:
    report = RuntimeReport(runtime="executorch", quality=replace(MEASURED, **figures), task_accuracy={"all": answered})
    judge(report, GATES, {"all": 1.0}, random, effort)
    return next(gate for gate in report.gates if gate.name == f"quality: {name}")


def test_nano_passes_quickly_what_it_passes_in_full() -> None:
    """200 of 224 tokens: in full it is 0.915 of 0.9."""
    quick = gate_of("top-1", QUICK, top1=200 / TOKENS)
    assert (quick.status, quick.value) == ("pass", 0.893)
    assert quick.reason == "0.9, with room for what 224 trials leave to chance (99%, binomial)"
    for strict in (FULL, Effort(name="custom"), None):
        assert gate_of("top-1", strict, top1=200 / TOKENS).status == "fail"
        assert gate_of("top-1", strict).limit == GATES.quality.top1
        assert gate_of("top-1", strict).reason is None


@pytest.mark.parametrize("count", [1, 16, TOKENS])
def test_a_share_fails_where_chance_gives_so_few_once_in_a_hundred_samples(count: int) -> None:
    drawn = np.random.default_rng(1).binomial(count, GATES.quality.top1, size=200_000)
    limit = gate_of("top-1", QUICK, tokens=count).limit
    assert limit is not None
    assert (drawn / count < limit).mean() < 0.0105
    assert (drawn / count <= limit).mean() >= 0.0095
    assert gate_of("top-1", QUICK, tokens=count, top1=limit).status == "pass"
    assert gate_of("top-1", QUICK, tokens=count, top1=limit - 1 / count).status == "fail"


def test_a_mean_has_room_by_its_own_spread() -> None:
    asked = GATES.quality.mean_kld
    spread = {"kld_standard_error": 0.01, "tokens": 1000}
    assert gate_of("mean KLD", QUICK, mean_kld=asked + 0.023, **spread).status == "pass"  # 2.33 standard errors
    assert gate_of("mean KLD", QUICK, mean_kld=asked + 0.024, **spread).status == "fail"
    assert gate_of("mean KLD", FULL, mean_kld=asked + 0.023, **spread).status == "fail"
    assert (
        gate_of("mean KLD", QUICK, mean_kld=asked + 0.001, kld_standard_error=float("nan"), tokens=1).status == "fail"
    )


def test_eight_questions_may_have_two_wrong_answers() -> None:
    """Of an artifact that answers 98 of 100 right, which its recipe allows, one sample in a hundred is so."""
    assert QUICK.questions == 8
    assert gate_of("task accuracy", QUICK, answered=6 / 8).status == "pass"
    assert gate_of("task accuracy", QUICK, answered=5 / 8).status == "fail"
    assert gate_of("task accuracy", FULL, answered=7 / 8).status == "fail"


def test_what_says_nothing_is_not_judged_by_chance_either() -> None:
    skipped = gate_of("top-1", QUICK, random=True, top1=0.0)
    assert skipped.status == "skipped"
    assert "random weights" in str(skipped.reason)
    assert gate_of("mean KLD", QUICK, mean_kld=float("nan")).reason == "the figure is not a number"

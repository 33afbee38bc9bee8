"""Question 1: did lowering break it? The artifact against the same (quantized) model in eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lfm2_export.generation import generate
from lfm2_export.parity.cases import Case
from lfm2_export.parity.metrics import clear_top1, relative_error, signal_to_noise
from lfm2_export.runtimes.session import Session


@dataclass(frozen=True)
class LoweringFigures:
    """Over every call of every case. Errors are relative to the eager tensor's largest value."""

    max_error: float  # logits and states
    logits_error: float
    state_error: float | None  # None: the form hides its state
    mean_absolute_error: float  # logits
    snr_db: float  # logits
    top1: float  # over rows whose margin exceeds the error
    worst_case: str


def compare(session: Session, eager: Session, cases: Iterable[Case]) -> LoweringFigures:
    """Run each case on both sides, comparing logits after every call and the whole state at the end."""
    actual, expected = [], []
    worst, worst_case, state_error = -1.0, "", 0.0
    for case in cases:
        session.reset()
        eager.reset()
        rows = [(session.prefill(call, case.pad_to), eager.prefill(call, case.pad_to)) for call in case.calls()]
        ours, theirs = (np.stack(side) for side in zip(*rows, strict=True))
        error = relative_error(ours, theirs)
        if session.has_state:
            states = _state_error(session, eager)
            state_error = max(state_error, states)
            error = max(error, states)
        if not error <= worst:  # a NaN is the worst there is
            worst, worst_case = error, case.name
        actual.append(ours)
        expected.append(theirs)
    ours, theirs = np.concatenate(actual), np.concatenate(expected)
    agreeing, counted = clear_top1(ours, theirs)
    return LoweringFigures(
        max_error=worst,
        logits_error=relative_error(ours, theirs),
        state_error=state_error if session.has_state else None,
        mean_absolute_error=float(np.abs(ours - theirs).mean()),
        snr_db=signal_to_noise(ours, theirs),
        top1=agreeing / counted if counted else 0.0,
        worst_case=worst_case,
    )


def same_greedy_text(session: Session, eager: Session, prompts: Iterable[tuple[int, ...]], limit: int) -> float:
    """Share of prompts whose greedy continuation of `limit` tokens is the same on both sides."""
    same = []
    for prompt in prompts:
        session.reset()
        eager.reset()
        ours = list(generate(session, prompt, (), limit))
        same.append(ours == list(generate(eager, prompt, (), limit)))
    return sum(same) / len(same)


def _state_error(session: Session, eager: Session) -> float:
    ours, theirs = session.state(), eager.state()
    if ours.position != theirs.position or ours.tensors.keys() != theirs.tensors.keys():
        return float("inf")
    return max(relative_error(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)

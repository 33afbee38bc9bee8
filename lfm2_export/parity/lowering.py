"""Question 1: did lowering break it? The artifact against the same (quantized) model in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lfm2_export.generation import greedy
from lfm2_export.parity.cases import Case
from lfm2_export.parity.metrics import clear_top1, relative_error, signal_to_noise, worst
from lfm2_export.runtimes.session import Session


@dataclass(frozen=True)
class LoweringFigures:
    """Over every call of every case. Errors are relative to the eager tensor's largest value."""

    max_error: float  # logits and states
    logits_error: float
    state_error: float | None  # None: the form hides its state
    mean_absolute_error: float  # logits
    snr_db: float  # logits
    top1: float | None  # over rows whose margin exceeds the allowed error; None: there were none
    median_step: float | None  # one step from eager's own state, so that rounding flips cannot add up
    worst_case: str


def compare(session: Session, eager: Session, cases: Sequence[Case], tolerance: float) -> LoweringFigures:
    """Run each case on both sides, comparing logits after every call and the whole state at the end."""
    actual, expected, names, errors, state_errors = [], [], [], [], [0.0]
    for case in cases:
        session.reset()
        eager.reset()
        rows = [(session.prefill(call, case.pad_to), eager.prefill(call, case.pad_to)) for call in case.calls()]
        ours, theirs = (np.stack(side) for side in zip(*rows, strict=True))
        if session.has_state:
            state_errors.append(_state_error(session, eager))
        names.append(case.name)
        errors.append(worst([relative_error(ours, theirs), state_errors[-1]]))
        actual.append(ours)
        expected.append(theirs)
    ours, theirs = np.concatenate(actual), np.concatenate(expected)
    agreeing, counted = clear_top1(ours, theirs, tolerance)
    return LoweringFigures(
        max_error=worst(errors),
        logits_error=relative_error(ours, theirs),
        state_error=worst(state_errors) if session.has_state else None,
        mean_absolute_error=float(np.abs(ours - theirs).mean()),
        snr_db=signal_to_noise(ours, theirs),
        top1=agreeing / counted if counted else None,
        median_step=_median_step(session, eager, cases[0].tokens) if session.has_state else None,
        worst_case=names[int(np.argmax(errors))],
    )


def same_greedy_text(
    session: Session, eager: Session, prompts: Sequence[tuple[int, ...]], limit: int, tolerance: float
) -> float | None:
    """Share of prompts whose greedy continuation is the same on both sides for up to `limit` tokens.

    Both sides are led along eager's tokens, and a fork counts only where eager's margin is clear of the
    allowed error (`clear_top1`): at a closer call either token is a fair answer. None if every call was too close.
    """
    same, clear = 0, 0
    for prompt in prompts:
        session.reset()
        eager.reset()
        ours, theirs = [session.prefill(prompt)], [eager.prefill(prompt)]
        while len(theirs) < limit and eager.position < eager.window:
            token = greedy(theirs[-1], ())
            ours.append(session.decode(token))
            theirs.append(eager.decode(token))
        agreeing, counted = clear_top1(np.stack(ours), np.stack(theirs), tolerance)
        same += agreeing == counted
        clear += counted
    return same / len(prompts) if clear else None


def _median_step(session: Session, eager: Session, tokens: Sequence[int]) -> float:
    """Each step starts from eager's state. A systematic fault shows in every step, a rounding flip in a few."""
    eager.reset()
    errors = []
    for token in tokens:
        session.restore(eager.state())
        error = relative_error(session.decode(token), eager.decode(token))
        errors.append(worst([error, _state_error(session, eager)]))
    return float(np.median(errors))


def _state_error(session: Session, eager: Session) -> float:
    ours, theirs = session.state(), eager.state()
    if ours.position != theirs.position or ours.tensors.keys() != theirs.tensors.keys():
        return float("inf")
    return worst([relative_error(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors])

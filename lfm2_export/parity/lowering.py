"""Question 1: did lowering break it? The artifact against the same (quantized) model in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lfm2_export.chat.sampling import greedy
from lfm2_export.evaluate.metrics import clear_top1, relative_error, rms_error, worst
from lfm2_export.parity.cases import Case
from lfm2_export.recipes import LoweringGates
from lfm2_export.runtimes.session import Session

NOISE_MAX, NOISE_RMS = 2.0, 1.5  # how much further from eager than eager from itself: largest error, RMS of logits


@dataclass(frozen=True)
class Distance:
    """Between two sessions over every call of every case. Errors are relative to the second one's largest value."""

    max_error: float  # logits and states
    logits_error: float
    state_error: float | None  # None: the form hides its state
    mean_absolute_error: float  # logits
    rms_error: float  # logits, relative to their own RMS
    worst_case: str


@dataclass(frozen=True)
class LoweringFigures(Distance):
    """The artifact's distance from eager, and what it means."""

    top1: float | None  # over rows whose margin exceeds the allowed error; None: there were none
    median_step: float | None  # one step from eager's own state, so that rounding flips cannot add up
    floor: Distance | None  # eager's distance from its disturbed self (noise.py); None: no activation is rounded


@dataclass(frozen=True)
class TwinFigures:
    """The same program on another processor. Errors are relative to the largest value of the twin."""

    runtime: str  # the twin
    max_error: float  # logits and states of a prefill
    rms_error: float  # logits, relative to their own RMS
    median_step: float  # one step from the twin's own state, so that rounding flips cannot add up


@dataclass(frozen=True)
class _Run:
    """Logits of both sides `[calls, vocab]`, and each case's errors."""

    ours: np.ndarray
    theirs: np.ndarray
    errors: dict[str, float]
    state_errors: list[float]


def noise_rules(gates: LoweringGates, floor: Distance) -> bool:
    """Whether eager differs from its own disturbed self by so much that the recipe's limit cannot be asked for."""
    return NOISE_MAX * floor.max_error > gates.max_error


def allowed_error(gates: LoweringGates, floor: Distance | None) -> float:
    """The recipe's limit or, where rounding noise alone comes near it, twice that noise.

    A largest error is a poor witness of noise, so there the RMS, which hardly varies, is judged as well.
    """
    return NOISE_MAX * floor.max_error if floor is not None and noise_rules(gates, floor) else gates.max_error


def compare(
    session: Session, eager: Session, cases: Sequence[Case], tolerance: float, floor: Distance | None
) -> LoweringFigures:
    """Run each case on both sides, comparing logits after every call and the whole state at the end."""
    run = _run(session, eager, cases)
    agreeing, counted = clear_top1(run.ours, run.theirs, tolerance)
    return LoweringFigures(
        **vars(_distance(run)),
        top1=agreeing / counted if counted else None,
        median_step=median_step(session, eager, cases[0].tokens) if session.has_state else None,
        floor=floor,
    )


def distance(session: Session, eager: Session, cases: Sequence[Case]) -> Distance:
    """How far `session` is from `eager` over these cases."""
    return _distance(_run(session, eager, cases))


def _run(session: Session, eager: Session, cases: Sequence[Case]) -> _Run:
    actual, expected, errors, state_errors = [], [], {}, []
    for case in cases:
        session.reset()
        eager.reset()
        rows = [(session.prefill(call, case.pad_to), eager.prefill(call, case.pad_to)) for call in case.calls()]
        ours, theirs = (np.stack(side) for side in zip(*rows, strict=True))
        state_errors += [_state_error(session, eager)] if session.has_state else []
        errors[case.name] = worst([relative_error(ours, theirs), *state_errors[-1:]])
        actual.append(ours)
        expected.append(theirs)
    return _Run(np.concatenate(actual), np.concatenate(expected), errors, state_errors)


def _distance(run: _Run) -> Distance:
    return Distance(
        max_error=worst(list(run.errors.values())),
        logits_error=relative_error(run.ours, run.theirs),
        state_error=worst(run.state_errors) if run.state_errors else None,
        mean_absolute_error=float(np.abs(run.ours - run.theirs).mean()),
        rms_error=rms_error(run.ours, run.theirs),
        worst_case=max(run.errors, key=lambda name: (np.isnan(run.errors[name]), run.errors[name])),
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


def median_step(session: Session, eager: Session, tokens: Sequence[int]) -> float:
    """Of a step's error, logits and states. Each step starts from eager's state: a systematic fault shows in every one,
    a rounding flip in a few."""
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

"""Question 1: did lowering break it? The artifact against the same (quantized) model in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lfm2_export.evaluate.metrics import Apart, all_apart, apart, relative_error, worst
from lfm2_export.parity.cases import Case
from lfm2_export.parity.truth import Answer, Truth, answer
from lfm2_export.recipes import LoweringGates
from lfm2_export.runtimes.session import Session, Snapshot

NOISE_MAX, NOISE_RMS = 2.0, 1.5  # how much further from eager than eager from itself: largest error, RMS of logits


@dataclass(frozen=True)
class Distance:
    """Between two sides over every call of every case. Errors are relative to the second one's largest value."""

    max_error: float  # logits and states
    logits_error: float
    state_error: float | None  # None: the form hides its state
    mean_absolute_error: float  # logits
    rms_error: float  # logits, relative to their own RMS
    worst_case: str

    def times(self, factor: float) -> Distance:
        """Return the distance of something whose rounding moves a model that much further."""
        state = None if self.state_error is None else factor * self.state_error
        errors = (self.max_error, self.logits_error, self.mean_absolute_error, self.rms_error)
        largest, logits, mean, rms = (factor * error for error in errors)
        return Distance(largest, logits, state, mean, rms, self.worst_case)


@dataclass(frozen=True)
class LoweringFigures(Distance):
    """The artifact's distance from eager, and what it means."""

    top1: float | None  # over rows whose margin exceeds the allowed error; None: there were none
    median_step: float | None  # one step from eager's own state, so that rounding flips cannot add up; None: hidden
    floor: Distance | None  # eager's distance from its disturbed self (noise.py); None: no activation is rounded
    floor_step: float | None = None  # eager's own median step away from its disturbed self; None likewise


@dataclass(frozen=True)
class TwinFigures:
    """The same program on another processor. Errors are relative to the largest value of the twin."""

    runtime: str  # the twin
    max_error: float  # logits and states of a prefill
    rms_error: float  # logits, relative to their own RMS
    median_step: float  # one step from the twin's own state, so that rounding flips cannot add up


def noise_rules(gates: LoweringGates, floor: Distance) -> bool:
    """Tell whether eager differs from its disturbed self by so much that the recipe's limit cannot be asked for."""
    return NOISE_MAX * floor.max_error > gates.max_error


def allowed_step(gates: LoweringGates, floor_step: float | None) -> float:
    """The recipe's limit of a median step or, where rounding noise alone comes near it, twice that noise."""
    limit = gates.median_step if gates.median_step is not None else gates.max_error
    return max(limit, NOISE_MAX * (floor_step or 0.0))


def allowed_error(gates: LoweringGates, floor: Distance | None) -> float:
    """The recipe's limit or, where rounding noise alone comes near it, twice that noise.

    A largest error is a poor witness of noise, so there the RMS, which hardly varies, is judged as well.
    """
    return NOISE_MAX * floor.max_error if floor is not None and noise_rules(gates, floor) else gates.max_error


def compare(
    session: Session,
    truth: Truth,
    cases: Sequence[Case],
    tolerance: float,
    floor: Distance | None,
    noise: float = 1.0,
) -> LoweringFigures:
    """Run each case, and hold the artifact's logits after every call and its state at the end to the truth.

    `floor` is how far noise may move it, for a runtime of that `noise` (see `Runtime`).
    """
    step = disturbed_step(truth, cases[0].tokens) if floor is not None and session.has_state else None
    found = distances(session, truth, cases)
    agreeing, counted = all_apart([case.logits for case in found]).clear_top1(tolerance)
    return LoweringFigures(
        **vars(over_all(found)),
        top1=agreeing / counted if counted else None,
        median_step=median_step(session, truth, cases[0].tokens) if session.has_state else None,
        floor=floor,
        floor_step=None if step is None else noise * step,
    )


class CaseDistance(NamedTuple):
    """How far two answers to a case lie apart; `state_error` is None where one hides its state."""

    case: str
    logits: Apart
    state_error: float | None

    @property
    def error(self) -> float:
        """Return the larger relative error of both."""
        return worst([self.logits.relative_error, *([] if self.state_error is None else [self.state_error])])


def case_distance(case: Case, ours: Answer, theirs: Answer) -> CaseDistance:
    """Return how far ours is from theirs."""
    error = None if ours.state is None or theirs.state is None else state_error(ours.state, theirs.state)
    return CaseDistance(case.name, apart(ours.logits, theirs.logits), error)


def distances(session: Session, truth: Truth, cases: Sequence[Case]) -> list[CaseDistance]:
    """Return how far a session is from the truth on each case; one's answers are gone before the next one's come."""
    return [case_distance(case, answer(session, case), truth.answer(case)) for case in cases]


def over_all(cases: Sequence[CaseDistance]) -> Distance:
    """Return how far the answers to all cases lie apart."""
    logits = all_apart([case.logits for case in cases])
    state_errors = [case.state_error for case in cases if case.state_error is not None]
    furthest = max(cases, key=lambda case: (np.isnan(case.error), case.error))
    return Distance(
        max_error=worst([case.error for case in cases]),
        logits_error=logits.relative_error,
        state_error=worst(state_errors) if state_errors else None,
        mean_absolute_error=logits.mean_absolute_error,
        rms_error=logits.rms_error,
        worst_case=furthest.case,
    )


def same_greedy_text(
    session: Session, truth: Truth, prompts: Sequence[tuple[int, ...]], limit: int, tolerance: float
) -> float | None:
    """Share of prompts whose greedy continuation is the same on both sides for up to `limit` tokens.

    The artifact is led along the truth's tokens, and a fork counts only where the truth's margin is clear of the
    allowed error (`clear_top1`): at a closer call either token is a fair answer. None if every call was too close.
    """
    same, clear = 0, 0
    for prompt, reply in zip(prompts, truth.continuations(prompts, limit), strict=True):
        session.reset()
        ours = np.stack([session.prefill(prompt), *(session.decode(token) for token in reply.tokens)])
        agreeing, counted = apart(ours, reply.logits).clear_top1(tolerance)
        same += agreeing == counted
        clear += counted
    return same / len(prompts) if clear else None


def median_step(session: Session, truth: Truth, tokens: tuple[int, ...]) -> float:
    """Return the median over steps of a step's error, logits and states. Each step starts from the truth's state: a
    systematic fault shows in every one, a rounding flip in a few."""
    errors = []
    for step in truth.steps(tokens):
        session.restore(step.before)
        error = relative_error(session.decode(step.token), step.logits)
        errors.append(worst([error, state_error(session.state(), step.after)]))
    return float(np.median(errors))


def disturbed_step(truth: Truth, tokens: tuple[int, ...]) -> float | None:
    """Return the median error of the truth's own steps, disturbed; None for one that cannot be disturbed."""
    errors = [
        worst([relative_error(ours.logits, step.logits), state_error(ours.after, step.after)])
        for ours, step in zip(truth.disturbed_steps(tokens), truth.steps(tokens), strict=False)
    ]
    return float(np.median(errors)) if errors else None


def state_error(ours: Snapshot, theirs: Snapshot) -> float:
    """Return the largest relative error of any state tensor; infinite where the states are not of the same kind."""
    if ours.position != theirs.position or ours.tensors.keys() != theirs.tensors.keys():
        return float("inf")
    return worst([relative_error(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors])

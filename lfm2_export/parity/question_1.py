"""Question 1: did lowering break it? The artifact against the same quantized model, through every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lfm2_export import runtimes, targets
from lfm2_export.errors import UsageError
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity import detail as details
from lfm2_export.parity.cases import Case, lowering_cases
from lfm2_export.parity.counted import Counted
from lfm2_export.parity.detail import Detail, Details
from lfm2_export.parity.laws import OtherForm
from lfm2_export.parity.lowering import (
    CaseDistance,
    TwinFigures,
    allowed_error,
    compare,
    distances,
    median_step,
    over_all,
    same_greedy_text,
)
from lfm2_export.parity.noise import noise_floor
from lfm2_export.parity.other_form import none_because, other_form
from lfm2_export.parity.reference import reference, rounded_as_in
from lfm2_export.parity.report import RuntimeReport
from lfm2_export.parity.subject import Subject
from lfm2_export.parity.truth import EagerTruth, SessionTruth, Truth
from lfm2_export.parity.work import Work
from lfm2_export.quantize.freed_memory import return_at_once
from lfm2_export.quantize.scheme import has_integers
from lfm2_export.recipes import Gates, Recipe
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

TWIN_STEPS = 16  # of an emulated processor, each from the state of the same program here


class Model(NamedTuple):
    """What the artifact was lowered from, for question 1."""

    decoder: Decoder  # the quantized model
    eager: Session  # what the artifact must equal
    stored: float | None  # share of the stored weights that are not the model's; None: the target does not say
    other: OtherForm


def lowered_from(subject: Subject, work: Work, decoder: Decoder) -> Model:
    """Return what the artifact was lowered from, with what the other form of it says."""
    eager = reference(subject.artifact, decoder)
    stored = targets.find(subject.artifact.manifest.target).weights_error(decoder, subject.artifact.folder)
    if none_because(subject) is None:
        subject.progress("the other form of the same model, to compare with", work.other_form())
    other = other_form(subject, decoder)
    return_at_once()
    return Model(decoder, eager, stored, other)


def question_1(
    subject: Subject,
    work: Work,
    model: Model,
    reports: list[RuntimeReport],
    cases_of: Mapping[str, list[Case]],
    sessions: Mapping[str, Counted],
    references: Mapping[str, Session],
) -> dict[str, float]:
    """Against the same quantized model, in eager or the runtime's own reference: cases and greedy text.

    Returns the error allowed to each runtime.
    """
    decoder, eager, *_ = model
    tolerances: dict[str, float] = {}
    prompts = [tokens[: min(32, subject.window - 1)] for tokens in subject.text.sequences[: subject.effort.prompts]]
    everything = [case for cases in cases_of.values() for case in cases]
    common: Truth = SessionTruth(eager)
    if isinstance(eager, EagerSession):
        common = EagerTruth(decoder, subject.window, everything, subject.half)
    elif subject.device != "cpu":
        raise UsageError(f"what {subject.artifact.manifest.target} artifacts must equal is computed on the CPU only")
    of_common: dict[Case, CaseDistance] = {}  # its noise
    for report in reports:
        with rounded_as_in(runtimes.find(report.runtime), decoder) as otherwise:
            session, own = sessions[report.runtime], references.get(report.runtime)
            cases = cases_of[report.runtime]
            truth = EagerTruth(decoder, subject.window, cases, subject.half) if otherwise else common
            truth = SessionTruth(own) if own is not None else truth
            report.reference = truth.runtime
            what = f"{report.runtime}: against the same quantized model in {truth.runtime}"
            subject.progress(what, work.lowering(report.runtime))
            noise = _noise(subject.recipe, report.runtime)
            floor = None
            if subject.rounds and isinstance(truth, EagerTruth):
                floor = noise_floor(truth, cases, of_common if truth is common else None).times(noise)
            tolerances[report.runtime] = tolerance = allowed_error(
                gates_of(subject.recipe, report.runtime).lowering, floor
            )
            report.lowering = compare(session, truth, cases, tolerance, floor, noise)
            report.twin = _twin(subject, report, session, cases)
            report.greedy = same_greedy_text(session, truth, prompts, subject.effort.continuation, tolerance)
            if subject.detail is not None:
                report.details = _details(subject, work, subject.detail, session, own or eager)
            session.rest()
    return tolerances


def cases_for(subject: Subject, session: Session) -> list[Case]:
    """Return the cases of a runtime."""
    effort = subject.effort
    return lowering_cases(
        subject.config, subject.window, subject.tokens, session.pads, effort.case_tokens, effort.case_steps
    )


def gates_of(recipe: Recipe, runtime: str) -> Gates:
    """The recipe's limits. Where no weight is an integer all divergence is noise, and the runtime's may be larger."""
    gates = recipe.judged_by
    return gates if has_integers(recipe.quantization) else gates.diverging(_noise(recipe, runtime))


def _noise(recipe: Recipe, runtime: str) -> float:
    return runtimes.find(runtime).noise(recipe.quantization)


def _twin(subject: Subject, report: RuntimeReport, session: Session, cases: Sequence[Case]) -> TwinFigures | None:
    """An emulated processor beside this machine's own, the same program on both; None for any other runtime."""
    twin = runtimes.find(report.runtime).twin_session(subject.artifact.folder, subject.artifact.manifest)
    if twin is None:
        return None
    subject.progress(f"{report.runtime}: against {twin.runtime}")
    truth = SessionTruth(twin)
    found = over_all(distances(session, truth, cases[:1]))
    step = median_step(session, truth, cases[0].tokens[:TWIN_STEPS])
    return TwinFigures(twin.runtime, found.max_error, found.rms_error, step)


def _details(subject: Subject, work: Work, wanted: Detail, session: Session, truth: Session) -> Details:
    """What only a report shows, of the artifact from its reference."""
    tokens, asked = subject.tokens[: subject.window], wanted.drift_steps
    what = f"{session.runtime}: layer by layer, and a conversation of up to {asked} decode steps"
    subject.progress(what, work.details())
    found = details.from_reference(session, truth, subject.config, tokens, subject.long_text(asked), wanted)
    if isinstance(truth, EagerSession) and subject.residual_stream is None:
        subject.residual_stream = details.residual_stream(truth, tokens)
    return found

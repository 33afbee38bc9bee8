"""Prove an artifact: both questions and the state laws, through every runtime that is meant for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lfm2_export import runtimes, targets
from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Extent
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.environment.resources import torch_threads
from lfm2_export.errors import MissingDependencyError, UsageError
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity import detail as details
from lfm2_export.parity import stock_runner
from lfm2_export.parity.beside import Beside
from lfm2_export.parity.cases import Case, lowering_cases
from lfm2_export.parity.counted import Counted
from lfm2_export.parity.detail import Detail, Details
from lfm2_export.parity.effort import LEFT_OUT, Effort, effort_of
from lfm2_export.parity.laws import LawContext, OtherForm, state_laws
from lfm2_export.parity.lowering import (
    TwinFigures,
    allowed_error,
    compare,
    distance,
    median_step,
    same_greedy_text,
)
from lfm2_export.parity.noise import noise_floor
from lfm2_export.parity.other_form import none_because, other_form
from lfm2_export.parity.quality import question_2, read_fp32
from lfm2_export.parity.reference import quantized_model, reference, reference_version, rounded_as_in
from lfm2_export.parity.report import ParityReport, RuntimeReport, judge
from lfm2_export.parity.reproduce import commands
from lfm2_export.parity.subject import Subject
from lfm2_export.parity.truth import EagerTruth, SessionTruth, Truth
from lfm2_export.parity.work import Work
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.freed_memory import return_at_once
from lfm2_export.quantize.scheme import has_integers
from lfm2_export.quantize.unpack import unpack, without_rounding
from lfm2_export.recipes import Gates, Recipe
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

TWIN_STEPS = 16  # of an emulated processor, each from the state of the same program here


def prove(
    artifact: Artifact,
    checkpoint: Checkpoint,
    only: Sequence[str] = (),
    effort: Effort | Extent = "full",
    progress: Progress = silent,
    text: Path | None = None,
    detail: Detail | None = None,
    device: str = "cpu",
) -> ParityReport:
    """Run the whole ladder on an artifact made from `checkpoint`; with `detail`, measure what only a report shows.

    `effort` "quick" asks the same of fewer tokens and cases, and leaves out what is lowered only to be compared with.
    `text` is a UTF-8 file to judge quality on, all of it, instead of held-out chats; UsageError if it cannot be read.

    `only` names the runtimes to use; UsageError if one of them does not run such an artifact, and
    MissingDependencyError if it is not installed. Without `only`, an absent runtime is reported as skipped.

    `device` is where eager PyTorch computes what the artifact must equal (see `reference_device`).
    """
    with torch_threads(checkpoint.config):
        return _prove(artifact, checkpoint, only, effort, progress, text, detail, device)


def _prove(
    artifact: Artifact,
    checkpoint: Checkpoint,
    only: Sequence[str],
    effort: Effort | Extent,
    progress: Progress,
    text: Path | None,
    detail: Detail | None,
    device: str,
) -> ParityReport:
    return_at_once()  # logits and weights come and go by the megabyte
    asked = [RuntimeReport(runtime=name, stands_in=runtimes.find(name).stands_in) for name in _names(artifact, only)]
    reports: list[RuntimeReport] = []
    sessions: dict[str, Session] = {}
    for report in sorted(asked, key=lambda each: each.stands_in):
        if report.stands_in and sessions and not only:
            continue  # it has nobody to stand in for
        reports.append(report)
        if session := _open(artifact, report, bool(only), progress):
            sessions[report.runtime] = session
    opened = [report for report in reports if report.runtime in sessions]
    references = {name: reference for name in sessions if (reference := _reference(artifact, name))}
    if not isinstance(effort, Effort):
        effort = effort_of(effort, {runtimes.find(name).emulates for name in sessions if name not in references})
    if detail is not None and effort.drift_steps is not None:
        detail = replace(detail, drift_steps=min(detail.drift_steps, effort.drift_steps))
    subject = Subject(artifact, checkpoint, effort, progress, text, detail, device)
    cases = {name: _cases(subject, session) for name, session in sessions.items()}
    work = Work(subject, cases, {name: references.get(name, session).verifies for name, session in sessions.items()})
    progress.expect(work.total())
    sessions = {name: Counted(session, work, progress) for name, session in sessions.items()}
    subject.progress("the quantized model", work.loading())
    decoder = _quantized(subject)
    with Beside(partial(read_fp32, subject)) as reading:
        model = _quantized_model(subject, work, decoder)
        subject.progress("fp32: layer by layer over all tokens", work.fp32())
        fp32 = reading.result(partial(subject.progress.advance, work.layer()))
    unpack(decoder).to(subject.device)  # its grids have served, and every call is many times faster without them
    tolerances = _question_1(subject, work, model, opened, cases, sessions, references)
    other = model.other
    del model, decoder
    _state_laws(subject, work, opened, sessions, other, tolerances)
    accuracy, cache = question_2(subject, work, fp32, opened, sessions, references)
    for report in opened:
        judge(report, _gates(subject.recipe, report.runtime), accuracy, checkpoint.random_weights)
    if stock_runner.runs(artifact.manifest):
        reports.append(stock_runner.prove(artifact, subject.tokenizer, unpack(_quantized(subject)), progress))
    manifest = artifact.manifest
    return ParityReport(
        artifact=artifact.folder.name,
        recipe=subject.recipe.name,
        source=manifest.source.name,
        weights_sha256=manifest.source.weights_sha256,
        random_weights=checkpoint.random_weights,
        effort=effort.name,
        text=subject.text.kind,
        reference_task_accuracy=accuracy,
        cache=cache,
        delegation=[method.delegation for method in manifest.methods if method.delegation],
        size_bytes=manifest.shipped_bytes,
        versions=manifest.versions | {"reference": reference_version(device)},
        settings=manifest.recipe,
        files={name: entry.size for name, entry in manifest.files.items()},
        quantization=manifest.quantization,
        reproduce=commands(manifest, effort.name),
        runtimes=reports,
    )


def _names(artifact: Artifact, only: Sequence[str]) -> list[str]:
    for name in only:
        if not runtimes.find(name).runs(artifact.manifest):
            raise UsageError(f"runtime {name!r} does not run {artifact.manifest.target} artifacts")
    return [each for name in only for each in runtimes.each_processor(name)] or runtimes.usual(artifact.manifest)


def _open(artifact: Artifact, report: RuntimeReport, required: bool, progress: Progress) -> Session | None:
    runtime = runtimes.find(report.runtime)
    try:
        report.version = runtime.version()
    except MissingDependencyError as error:
        if required:
            raise
        report.reason = str(error)
        return None
    progress(f"{report.runtime}: loading")
    start = time.perf_counter()
    session = runtime.open_session(artifact.folder, artifact.manifest)
    report.load_seconds = time.perf_counter() - start
    report.checks, report.notes = session.checks, session.notes
    return session


def _reference(artifact: Artifact, runtime: str) -> Session | None:
    return runtimes.find(runtime).reference_session(artifact.folder, artifact.manifest)


def _gates(recipe: Recipe, runtime: str) -> Gates:
    """The recipe's limits. Where no weight is an integer all divergence is noise, and the runtime's may be larger."""
    gates = recipe.judged_by
    return gates if has_integers(recipe.quantization) else gates.diverging(_noise(recipe, runtime))


def _noise(recipe: Recipe, runtime: str) -> float:
    return runtimes.find(runtime).noise(recipe.quantization)


def _quantized(subject: Subject) -> Decoder:
    return quantized_model(subject.artifact, subject.checkpoint)


class _Model(NamedTuple):
    """What the artifact was lowered from, for question 1."""

    decoder: Decoder  # the quantized model
    eager: Session  # what the artifact must equal
    stored: float | None  # share of the stored weights that are not the model's; None: the target does not say
    other: OtherForm


def _quantized_model(subject: Subject, work: Work, decoder: Decoder) -> _Model:
    eager = reference(subject.artifact, decoder)
    stored = targets.find(subject.artifact.manifest.target).weights_error(decoder, subject.artifact.folder)
    if none_because(subject) is None:
        subject.progress("the other form of the same model, to compare with", work.other_form())
    other = other_form(subject, decoder, _spoken(subject))
    return_at_once()
    return _Model(decoder, eager, stored, other)


def _spoken(subject: Subject) -> tuple[int, ...]:
    """Return the tokens that a state law feeds."""
    return subject.tokens[: min(subject.window // 2, subject.effort.law_tokens)]


def _question_1(
    subject: Subject,
    work: Work,
    model: _Model,
    reports: list[RuntimeReport],
    cases_of: Mapping[str, list[Case]],
    sessions: Mapping[str, Session],
    references: Mapping[str, Session],
) -> dict[str, float]:
    """Against the same quantized model, in eager or the runtime's own reference: cases and greedy text.

    Returns the error allowed to each runtime.
    """
    decoder, eager, stored, _ = model
    tolerances: dict[str, float] = {}
    prompts = [tokens[: min(32, subject.window - 1)] for tokens in subject.text.sequences[: subject.effort.prompts]]
    everything = [case for cases in cases_of.values() for case in cases]
    common: Truth = SessionTruth(eager)
    if isinstance(eager, EagerSession):
        common = EagerTruth(decoder, subject.window, everything, subject.half)
    elif subject.device != "cpu":
        raise UsageError(f"what {subject.artifact.manifest.target} artifacts must equal is computed on the CPU only")
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
            measured = noise_floor(truth, cases) if subject.rounds and isinstance(truth, EagerTruth) else None
            floor = None if measured is None else measured.times(noise)
            tolerances[report.runtime] = tolerance = allowed_error(
                _gates(subject.recipe, report.runtime).lowering, floor
            )
            report.lowering = compare(session, truth, cases, tolerance, floor, noise)
            report.twin = _twin(subject, report, session, cases)
            report.greedy = same_greedy_text(session, truth, prompts, subject.effort.continuation, tolerance)
            if subject.detail is not None:
                report.details = _details(subject, work, subject.detail, session, own or eager)
    del eager, common, truth
    for report in reports if subject.rounds else ():
        report.weights_error = stored
    if subject.rounds and stored is None:
        _run_weights_alone(subject, work, without_rounding(decoder), reports)
    return tolerances


def _state_laws(
    subject: Subject,
    work: Work,
    reports: list[RuntimeReport],
    sessions: Mapping[str, Session],
    other: OtherForm,
    tolerances: Mapping[str, float],
) -> None:
    """What a session must keep to, whatever the model says: nothing of eager is in memory meanwhile."""
    for report in reports:
        subject.progress(f"{report.runtime}: state laws", work.laws())
        session, tolerance = sessions[report.runtime], tolerances[report.runtime]
        context = LawContext(session, subject.config, _spoken(subject), tolerance, other, fills=subject.effort.whole)
        report.laws = list(state_laws(context))


def _cases(subject: Subject, session: Session) -> list[Case]:
    effort = subject.effort
    return lowering_cases(
        subject.config, subject.window, subject.tokens, session.pads, effort.case_tokens, effort.case_steps
    )


def _twin(subject: Subject, report: RuntimeReport, session: Session, cases: Sequence[Case]) -> TwinFigures | None:
    """An emulated processor beside this machine's own, the same program on both; None for any other runtime."""
    twin = runtimes.find(report.runtime).twin_session(subject.artifact.folder, subject.artifact.manifest)
    if twin is None:
        return None
    subject.progress(f"{report.runtime}: against {twin.runtime}")
    truth = SessionTruth(twin)
    found = distance(session, truth, cases[:1])
    step = median_step(session, truth, cases[0].tokens[:TWIN_STEPS])
    return TwinFigures(twin.runtime, found.max_error, found.rms_error, step)


def _run_weights_alone(subject: Subject, work: Work, decoder: Decoder, reports: list[RuntimeReport]) -> None:
    """The same files with activations and KV cache in fp32, where a runtime can: rounding hides no small fault."""
    for report in reports:
        if not subject.effort.whole:
            report.weights_reason = LEFT_OUT
            continue
        session = runtimes.find(report.runtime).weights_session(subject.artifact.folder, subject.artifact.manifest)
        if session is None:
            report.weights_reason = "this runtime cannot leave the activations in float"
            continue
        what = f"{report.runtime}: the stored weights, with activations in float"
        subject.progress(what, work.weights_alone(report.runtime))
        cases = _cases(subject, session)
        truth = EagerTruth(decoder, subject.window, cases)
        report.weights_error = distance(session, truth, cases).max_error


def _details(subject: Subject, work: Work, wanted: Detail, session: Session, truth: Session) -> Details:
    """What only a report shows, of the artifact from its reference."""
    tokens, asked = subject.tokens[: subject.window], wanted.drift_steps
    what = f"{session.runtime}: layer by layer, and a conversation of up to {asked} decode steps"
    subject.progress(what, work.details())
    found = details.from_reference(session, truth, subject.config, tokens, subject.long_text(asked), wanted)
    if isinstance(truth, EagerSession) and subject.residual_stream is None:
        subject.residual_stream = details.residual_stream(truth, tokens)
    return found

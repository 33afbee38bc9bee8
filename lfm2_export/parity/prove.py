"""Prove an artifact: both questions and the state laws, through every runtime that is meant for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Extent
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.environment.resources import parameters, torch_threads
from lfm2_export.errors import MissingDependencyError
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity import stock_runner
from lfm2_export.parity.beside import Beside
from lfm2_export.parity.counted import Counted
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.effort import Effort, effort_of
from lfm2_export.parity.fp32 import asked_of_fp32, beside
from lfm2_export.parity.images import Seen, as_stored, compare_images, look
from lfm2_export.parity.laws import LawContext, OtherForm, state_laws
from lfm2_export.parity.pictures import picture_cases
from lfm2_export.parity.quality import question_2
from lfm2_export.parity.question_1 import cases_for, gates_of, lowered_from, question_1
from lfm2_export.parity.reference import quantized_model, reference_version
from lfm2_export.parity.report import ParityReport, RuntimeReport, judge
from lfm2_export.parity.reproduce import commands
from lfm2_export.parity.subject import Subject
from lfm2_export.parity.weights_alone import unrounded_answers, weights_alone
from lfm2_export.parity.work import Work
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.freed_memory import SMALL, return_at_once, used_again
from lfm2_export.quantize.unpack import unpack
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

_SHOWN = 4096  # tokens that a picture with its question and reply has room in, in a report
# parameters from which several sessions at once are more than a laptop should give. Opening them again was a fifth of a
# quick proof at the 350M shape, where two at once take 0.4 GB more
_LARGE, _LARGE_QUICK = 100_000_000, 1_000_000_000


def prove(
    artifact: Artifact,
    checkpoint: Checkpoint,
    only: Sequence[str] = (),
    effort: Effort | Extent = "full",
    progress: Progress = silent,
    text: Path | None = None,
    detail: Detail | None = None,
    device: str = "cpu",
    ahead: Beside | None = None,
    lowered: Callable[[], Decoder] | None = None,
) -> ParityReport:
    """Run the whole ladder on an artifact made from `checkpoint`; with `detail`, measure what only a report shows.

    `effort` "quick" asks the same of fewer tokens and cases, and leaves out what is lowered only to be compared with.
    `text` is a UTF-8 file to judge quality on, all of it, instead of held-out chats; UsageError if it cannot be read.

    `only` names the runtimes to use; UsageError if one of them does not run such an artifact, and
    MissingDependencyError if it is not installed. Without `only`, an absent runtime is reported as skipped.

    `device` is where eager PyTorch computes what the artifact must equal (see `reference_device`).
    `ahead` is fp32's reading where it has begun already (see `fp32.read_ahead`); what is not asked for is not used.
    `lowered` hands over the very model that the artifact was lowered from; without, it is made again from `checkpoint`,
    or read back.
    """
    with torch_threads(checkpoint.config):
        return _prove(artifact, checkpoint, only, effort, progress, text, detail, device, ahead, lowered)


def _prove(
    artifact: Artifact,
    checkpoint: Checkpoint,
    only: Sequence[str],
    effort: Effort | Extent,
    progress: Progress,
    text: Path | None,
    detail: Detail | None,
    device: str,
    ahead: Beside | None,
    lowered: Callable[[], Decoder] | None,
) -> ParityReport:
    return_at_once()  # logits and weights come and go by the megabyte
    reports, sessions = _opened(artifact, only, progress)
    opened = [report for report in reports if report.runtime in sessions]
    references = {name: reference for name in sessions if (reference := _reference(artifact, name))}
    if not isinstance(effort, Effort):
        effort = effort_of(effort, {runtimes.find(name).emulates for name in sessions if name not in references})
    if detail is not None and effort.drift_steps is not None:
        detail = replace(detail, drift_steps=min(detail.drift_steps, effort.drift_steps))
    subject = Subject(artifact, checkpoint, effort, progress, text, detail, device)
    cases = {name: cases_for(subject, session) for name, session in sessions.items()}
    reads = {
        name: runtimes.find(name).reads or references.get(name, session).verifies for name, session in sessions.items()
    }
    work = Work(subject, cases, reads)
    progress.expect(work.total())
    counted = _counted(subject, sessions, work)
    sessions.clear()
    if ahead is not None:
        ahead.reclaim()
    seen = _seen(subject)
    subject.progress("the quantized model", work.loading())
    with _reading(subject, ahead) as reading:
        decoder = lowered() if lowered is not None else _quantized(subject)
        model = lowered_from(subject, work, decoder)
        subject.progress(f"fp32: layer by layer over {subject.text.part(0) or 'all tokens'}", work.fp32(0))
        fp32 = reading.result(partial(subject.progress.advance, work.layer(0)))
    unpack(decoder).to(subject.device)  # its grids have served, and every call is many times faster without them
    return_at_once(SMALL)
    tolerances = question_1(subject, work, model, opened, cases, counted, references)
    if seen:
        _images(subject, seen, decoder, opened, counted, tolerances)
    expected = unrounded_answers(subject, work, model, opened, cases)
    stored, other = model.stored, model.other
    del model, decoder
    return_at_once(SMALL)
    weights_alone(subject, stored, opened, cases, expected)
    _state_laws(subject, work, opened, counted, other, tolerances)
    accuracy, cache = question_2(subject, work, fp32, opened, counted, references)
    for report in opened:
        judge(report, gates_of(subject.recipe, report.runtime), accuracy, checkpoint.random_weights, effort)
    if stock_runner.runs(artifact.manifest):
        again, vision = unpack(_quantized(subject)), checkpoint.vision if seen else None
        reports.append(stock_runner.prove(artifact, subject.tokenizer, again, progress, vision, seen))
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


def _counted(subject: Subject, sessions: Mapping[str, Session], work: Work) -> dict[str, Counted]:
    """The sessions for the proof's turns; several of a large model are opened only in their own."""
    large = _LARGE if subject.effort.whole else _LARGE_QUICK
    rests = len(sessions) > 1 and parameters(subject.config) > large
    folder, manifest = subject.artifact.folder, subject.artifact.manifest
    counted = {}
    for name, session in sessions.items():
        again = partial(runtimes.find(name).open_session, folder, manifest) if rests else None
        counted[name] = Counted(session, work, subject.progress, again)
        counted[name].rest()
    return counted


def _reading(subject: Subject, ahead: Beside | None) -> AbstractContextManager[Beside]:
    """What fp32 reads, begun already or now."""
    asked = asked_of_fp32(subject.checkpoint, subject.recipe, subject.text, subject.detail is not None)
    if ahead is not None and ahead.asked == asked and subject.device == "cpu":
        return nullcontext(ahead)
    if ahead is not None:
        ahead.abandon()
    return beside(subject.checkpoint, asked, subject.device)


def _names(artifact: Artifact, only: Sequence[str]) -> list[str]:
    for name in only:
        runtimes.check_runs(name, artifact.manifest)
    return [each for name in only for each in runtimes.each_processor(name)] or runtimes.usual(artifact.manifest)


def _opened(
    artifact: Artifact, only: Sequence[str], progress: Progress
) -> tuple[list[RuntimeReport], dict[str, Session]]:
    """A report for each runtime, and a session of each that could be opened."""
    asked = [RuntimeReport(runtime=name, stands_in=runtimes.find(name).stands_in) for name in _names(artifact, only)]
    reports: list[RuntimeReport] = []
    sessions: dict[str, Session] = {}
    for report in sorted(asked, key=lambda each: each.stands_in):
        if report.stands_in and sessions and not only:
            continue  # it has nobody to stand in for
        reports.append(report)
        if session := _open(artifact, report, bool(only), progress):
            sessions[report.runtime] = session
    return reports, sessions


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


def _quantized(subject: Subject) -> Decoder:
    return quantized_model(subject.artifact, subject.checkpoint)


def _seen(subject: Subject) -> list[Seen]:
    """What both image parts make of images, before the decoder is in memory; nothing where the artifact takes none."""
    if not subject.artifact.manifest.takes_images:
        return []
    subject.progress("the image part, as it is stored and in fp32")
    return look(subject.checkpoint, subject.image_rule)


def _images(
    subject: Subject,
    seen: list[Seen],
    decoder: Decoder,
    reports: list[RuntimeReport],
    sessions: Mapping[str, Counted],
    tolerances: Mapping[str, float],
) -> None:
    """Images, against the same model; and what their part's precision costs."""
    rule, vision = subject.image_rule, subject.checkpoint.vision
    assert vision is not None
    for report in reports:
        subject.progress(f"{report.runtime}: images")
        name = report.runtime
        report.images = compare_images(sessions[name], seen, vision, decoder, subject.spoken, rule, tolerances[name])
        if subject.detail is not None:
            eager = EagerSession(decoder, min(subject.window, _SHOWN), as_stored(subject.checkpoint, rule))
            report.pictures = picture_cases(subject.artifact, vision, subject.tokenizer, sessions[name], eager)
        sessions[name].rest()


def _state_laws(
    subject: Subject,
    work: Work,
    reports: list[RuntimeReport],
    sessions: Mapping[str, Counted],
    other: OtherForm,
    tolerances: Mapping[str, float],
) -> None:
    """What a session must keep to, whatever the model says: nothing of eager is in memory meanwhile."""
    for report in reports:
        subject.progress(f"{report.runtime}: state laws", work.laws())
        session, tolerance = sessions[report.runtime], tolerances[report.runtime]
        tokens, before = subject.spoken, subject.before_spoken
        context = LawContext(session, subject.config, tokens, tolerance, other, subject.effort.whole, before)
        with used_again():
            report.laws = list(state_laws(context))
        session.rest()

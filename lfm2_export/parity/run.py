"""Prove an artifact: both questions and the state laws, through every runtime that is meant for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lfm2_export import runtimes, targets
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.source import Checkpoint, open_checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import ArtifactError, MissingDependencyError, UsageError
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder
from lfm2_export.model.resident import ResidentDecoder
from lfm2_export.parity import detail as details
from lfm2_export.parity import quality, stock_runner
from lfm2_export.parity.cache import CacheFigures, cache_figures
from lfm2_export.parity.cases import Case, lowering_cases, random_ids
from lfm2_export.parity.detail import Detail, Details, LayerError
from lfm2_export.parity.laws import LawContext, state_laws
from lfm2_export.parity.lowering import (
    TwinFigures,
    allowed_error,
    compare,
    distance,
    median_step,
    same_greedy_text,
)
from lfm2_export.parity.metrics import rms_error
from lfm2_export.parity.noise import noise_floor
from lfm2_export.parity.quantized import quantized_model
from lfm2_export.parity.report import ParityReport, RuntimeReport, judge
from lfm2_export.parity.reproduce import commands
from lfm2_export.parity.text import EvaluationText, evaluation_text, text_of_file
from lfm2_export.quantize.calibration import read_windows
from lfm2_export.quantize.unpack import unpack
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    quality_tokens: int = 2000
    questions: int = 60  # of nano's held-out ones
    prompts: int = 4
    continuation: int = 16  # greedy tokens after each prompt
    law_tokens: int = 1024  # most that a state law feeds


EMULATED = Effort(quality_tokens=150, questions=12, prompts=2, continuation=8, law_tokens=24)  # 0.1 to 0.5 s a call
EMULATED_CPU = Effort(quality_tokens=600, questions=24, prompts=2, continuation=8, law_tokens=24)  # nano: 0.01 s a call
TWIN_STEPS = 16  # of an emulated processor, each from the state of the same program here


@dataclass
class _Subject:
    """What is on trial, and the references it is judged against."""

    artifact: Artifact
    checkpoint: Checkpoint
    effort: Effort
    stage: Stage
    own_text: Path | None = None
    detail: Detail | None = None
    residual_stream: list[np.ndarray] | None = None  # of the quantized eager model, layer by layer, for a report

    def __post_init__(self) -> None:
        self.recipe = Recipe.model_validate(self.artifact.manifest.recipe)
        self.window = self.artifact.manifest.window
        self.config = self.checkpoint.config

    @cached_property
    def tokenizer(self) -> ChatTokenizer | None:
        return ChatTokenizer.load(self.artifact.folder, self.config)

    @cached_property
    def text(self) -> EvaluationText:
        if self.own_text is not None:
            return text_of_file(self.own_text, self.tokenizer, self.window)
        return evaluation_text(self.config, self.tokenizer, self.window, self.effort.quality_tokens)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """A run of at least 48 tokens of the evaluation text."""
        joined = [token for window in self.text.windows[:8] for token in window]
        return tuple(joined[:48]) if len(joined) >= 48 else random_ids(self.config, 48, seed=1)

    def long_text(self, count: int) -> tuple[int, ...]:
        """Evaluation text of `count` tokens, or of the window if that is less: one chat after the other, repeated."""
        count = min(count, self.window)
        joined = [token for window in self.text.windows for token in window]
        return tuple((joined * (count // len(joined) + 1))[:count])

    @property
    def has_tasks(self) -> bool:
        """Nano alone has questions with known answers."""
        return self.checkpoint.name == "nano" and self.tokenizer is not None


def prove(
    artifact: Artifact,
    checkpoint: Checkpoint,
    only: Sequence[str] = (),
    effort: Effort | None = None,
    stage: Stage = lambda _: None,
    text: Path | None = None,
    detail: Detail | None = None,
) -> ParityReport:
    """Run the whole ladder on an artifact made from `checkpoint`; with `detail`, measure what only a report shows.

    `text` is a UTF-8 file to judge quality on, all of it, instead of held-out chats; UsageError if it cannot be read.

    `only` names the runtimes to use; UsageError if one of them does not run such an artifact, and
    MissingDependencyError if it is not installed. Without `only`, an absent runtime is reported as skipped.
    """
    subject = _Subject(artifact, checkpoint, effort or Effort(), stage, text, detail)
    reports = [RuntimeReport(runtime=name) for name in _runtimes_for(artifact, only)]
    sessions = {report.runtime: session for report in reports if (session := _open(subject, report, bool(only)))}
    opened = [report for report in reports if report.runtime in sessions]
    references = {name: reference for name in sessions if (reference := _reference(artifact, name))}
    slow = [name for name, session in sessions.items() if session.emulated and name not in references]
    if effort is None and slow:
        cpus = all(isinstance(runtimes.find(name), runtimes.Emulated) for name in slow)
        subject.effort = EMULATED_CPU if cpus else EMULATED
        subject.detail = detail and replace(detail, drift_steps=min(detail.drift_steps, subject.effort.law_tokens))
    _question_1(subject, opened, sessions, references)
    accuracy, cache = _question_2(subject, opened, sessions, references)
    for report in opened:
        judge(report, subject.recipe.gates, accuracy, checkpoint.random_weights)
    if stock_runner.runs(artifact.manifest):
        reports.append(stock_runner.prove(artifact, subject.tokenizer, unpack(_quantized(subject)), stage))
    manifest = artifact.manifest
    return ParityReport(
        artifact=artifact.folder.name,
        recipe=subject.recipe.name,
        source=manifest.source.name,
        weights_sha256=manifest.source.weights_sha256,
        random_weights=checkpoint.random_weights,
        text=subject.text.kind,
        reference_task_accuracy=accuracy,
        cache=cache,
        delegation=[method.delegation for method in manifest.methods if method.delegation],
        size_bytes=manifest.shipped_bytes,
        versions=manifest.versions,
        settings=manifest.recipe,
        files={name: entry.size for name, entry in manifest.files.items()},
        quantization=manifest.quantization,
        reproduce=commands(manifest),
        runtimes=reports,
    )


def checkpoint_of(artifact: Artifact, given: str | None = None) -> Checkpoint:
    """The checkpoint an artifact was made from: `given`, or nano, or the hub id in the manifest.

    Raises UsageError when it is a local folder that was not given, ArtifactError when the weights differ.
    """
    source = artifact.manifest.source
    if given is None and source.name != "nano" and "/" not in source.name:
        raise UsageError(f"{artifact.folder} was made from the local folder {source.name!r}; pass --checkpoint FOLDER")
    checkpoint = open_checkpoint(given or source.name, None if given else source.revision)
    if checkpoint.digest() != source.weights_sha256:
        raise ArtifactError(
            f"{checkpoint.folder}: not the weights that {artifact.folder} was made from (digest differs)"
        )
    return checkpoint


def _runtimes_for(artifact: Artifact, only: Sequence[str]) -> list[str]:
    for name in only:
        if not runtimes.find(name).runs(artifact.manifest):
            raise UsageError(f"runtime {name!r} does not run {artifact.manifest.target} artifacts")
    return [each for name in only for each in runtimes.each_processor(name)] or runtimes.usual(artifact.manifest)


def _open(subject: _Subject, report: RuntimeReport, required: bool) -> Session | None:
    runtime = runtimes.find(report.runtime)
    try:
        report.version = runtime.version()
    except MissingDependencyError as error:
        if required:
            raise
        report.reason = str(error)
        return None
    subject.stage(f"{report.runtime}: loading")
    start = time.perf_counter()
    session = runtime.open_session(subject.artifact.folder, subject.artifact.manifest)
    report.load_seconds = time.perf_counter() - start
    return session


def _reference(artifact: Artifact, runtime: str) -> Session | None:
    return runtimes.find(runtime).reference_session(artifact.folder, artifact.manifest)


def traced_text(artifact: Artifact, checkpoint: Checkpoint, count: int) -> tuple[int, ...]:
    """The first tokens of the evaluation text."""
    return _Subject(artifact, checkpoint, Effort(quality_tokens=count), lambda _: None).long_text(count)


def _quantized(subject: _Subject) -> Decoder:
    return quantized_model(subject.artifact, subject.checkpoint)


def _question_1(
    subject: _Subject, reports: list[RuntimeReport], sessions: dict[str, Session], references: dict[str, Session]
) -> None:
    """Against the same quantized model, in eager or the runtime's own reference: cases, greedy text, state laws."""
    decoder = _quantized(subject)
    eager = reference(subject.artifact, decoder)
    rounds = any(rule.activation for rule in subject.recipe.quantization)
    stored = targets.find(subject.artifact.manifest.target).weights_error(decoder, subject.artifact.folder)
    unpack(decoder)  # its grids have served, and every call is many times faster without them
    prompts = [window[: min(32, subject.window - 1)] for window in subject.text.windows[: subject.effort.prompts]]
    for report in reports:
        session, truth = sessions[report.runtime], references.get(report.runtime, eager)
        report.reference = truth.runtime
        cases = lowering_cases(subject.config, subject.window, subject.tokens, session.pads)
        subject.stage(f"{report.runtime}: against the same quantized model in {truth.runtime}")
        floor = noise_floor(truth, cases) if rounds and isinstance(truth, EagerSession) else None
        tolerance = allowed_error(subject.recipe.gates.lowering, floor)
        report.lowering = compare(session, truth, cases, tolerance, floor)
        report.twin = _twin(subject, report, session, cases)
        report.greedy = same_greedy_text(session, truth, prompts, subject.effort.continuation, tolerance)
        subject.stage(f"{report.runtime}: state laws")
        other = _other_form(decoder, subject) if isinstance(truth, EagerSession) else None
        tokens = subject.tokens[: min(subject.window // 2, subject.effort.law_tokens)]
        context = LawContext(session, subject.config, tokens, tolerance, other)
        report.laws = list(state_laws(context))
        if subject.detail is not None:
            report.details = _along_the_layers(subject, session, truth)
    del eager, decoder
    for report in reports if rounds else ():
        report.weights_error = stored
    if rounds and stored is None:
        _run_weights_alone(subject, reports)


def _twin(subject: _Subject, report: RuntimeReport, session: Session, cases: Sequence[Case]) -> TwinFigures | None:
    """An emulated processor beside this machine's own, the same program on both; None for any other runtime."""
    runtime = runtimes.find(report.runtime)
    if not isinstance(runtime, runtimes.Emulated):
        return None
    twin = runtime.twin_session(subject.artifact.folder, subject.artifact.manifest)
    subject.stage(f"{report.runtime}: against {twin.runtime}")
    found = distance(session, twin, cases[:1])
    step = median_step(session, twin, cases[0].tokens[:TWIN_STEPS])
    return TwinFigures(twin.runtime, found.max_error, found.rms_error, step)


def reference(artifact: Artifact, decoder: Decoder) -> Session:
    """What the artifact must equal, in eager: the quantized decoder, or what its target makes of it by calibration.

    Raises ArtifactError when the artifact's calibration tokens are missing or wrong.
    """
    manifest = artifact.manifest
    recipe = Recipe.model_validate(manifest.recipe)
    windows = read_windows(artifact.folder, decoder.config) if recipe.calibration is not None else ()
    methods = targets.find(manifest.target).reference(decoder, recipe, windows)
    if methods is None:
        return EagerSession(decoder, manifest.window)
    call = pte_call(lambda name, inputs: methods[name](*inputs), manifest)
    return SliceSession(call, manifest, "eager", torch.__version__, emulated=False)


def _run_weights_alone(subject: _Subject, reports: list[RuntimeReport]) -> None:
    """The same files with activations and KV cache in fp32, where a runtime can: rounding hides no small fault."""
    for report in reports:
        session = runtimes.find(report.runtime).weights_session(subject.artifact.folder, subject.artifact.manifest)
        if session is None:
            report.weights_reason = "this runtime cannot leave the activations in float"
            continue
        subject.stage(f"{report.runtime}: the stored weights, with activations in float")
        decoder = quantized_model(subject.artifact, subject.checkpoint, float_activations=True)
        cases = lowering_cases(subject.config, subject.window, subject.tokens, session.pads)
        report.weights_error = distance(session, EagerSession(unpack(decoder), subject.window), cases).max_error


def _question_2(
    subject: _Subject, reports: list[RuntimeReport], sessions: dict[str, Session], references: dict[str, Session]
) -> tuple[dict[str, float] | None, CacheFigures]:
    """Against fp32 eager: divergence on text, accuracy on nano's questions.

    Returns fp32's own accuracy, and what a KV cache in the recipe's precision costs alone.

    Where an emulator is slow and has a reference that question 1 has just proven it equal to, that one answers.
    """
    fp32 = EagerSession(load_decoder(subject.checkpoint), subject.window)
    for report in reports:
        asked = references[report.runtime] if report.runtime in references else sessions[report.runtime]
        report.quality_of = asked.runtime
        subject.stage(f"{asked.runtime}: against fp32 on {subject.text.kind}")
        report.quality = quality.measure(asked, fp32, subject.text)
        if report.details is not None:
            subject.stage(f"{asked.runtime}: token by token, and layer by layer, for the report")
            report.details.tokens = details.token_divergence(asked, fp32, subject.text)
            _add_cost_by_layer(subject, report.details, fp32)
        if subject.tokenizer is not None and subject.has_tasks:
            subject.stage(f"{asked.runtime}: nano's held-out questions")
            report.task_accuracy = quality.task_accuracy(asked, subject.tokenizer, subject.effort.questions)
    cache = cache_figures(fp32.decoder, subject.recipe.cache, subject.window, subject.text.windows)
    if subject.tokenizer is None or not subject.has_tasks:
        return None, cache
    subject.stage("eager: nano's held-out questions")
    return quality.task_accuracy(fp32, subject.tokenizer, subject.effort.questions), cache


def _along_the_layers(subject: _Subject, session: Session, truth: Session) -> Details:
    """Of the artifact from its reference: each layer's state, and the drift of a long conversation."""
    assert subject.detail is not None
    found = Details()
    if session.has_state:
        found.layers = details.state_errors(session, truth, subject.config, subject.tokens[: subject.window])
    else:
        found.layers = [LayerError(layer=layer, kind=kind) for layer, kind in enumerate(subject.config.layer_types)]
    asked = subject.detail.drift_steps
    subject.stage(f"{session.runtime}: a conversation of up to {asked} decode steps")
    found.drift = details.drift(session, truth, subject.long_text(asked), asked, subject.detail.drift_samples)
    if isinstance(truth, EagerSession) and subject.residual_stream is None:
        subject.residual_stream = details.residual_stream(truth, subject.tokens[: subject.window])
    return found


def _add_cost_by_layer(subject: _Subject, found: Details, fp32: EagerSession) -> None:
    """How far quantization has moved the residual stream after each layer."""
    if subject.residual_stream is None:
        return
    streams = zip(subject.residual_stream, details.residual_stream(fp32, subject.tokens[: subject.window]), strict=True)
    for layer, (ours, theirs) in zip(found.layers, streams, strict=True):
        layer.quantization = details.rounded(rms_error(ours, theirs))


def _other_form(decoder: Decoder, subject: _Subject) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Logits of the form that the artifact is not, token by token in eager PyTorch."""

    @torch.inference_mode()
    def resident(tokens: tuple[int, ...]) -> np.ndarray:
        model = ResidentDecoder(decoder, subject.window)
        steps = [model(torch.tensor([[token]]), torch.tensor([at])) for at, token in enumerate(tokens)]
        return torch.cat(steps).numpy()

    def explicit(tokens: tuple[int, ...]) -> np.ndarray:
        session = EagerSession(decoder, subject.window)
        return np.stack([session.decode(token) for token in tokens])

    return explicit if subject.artifact.manifest.form == "resident" else resident

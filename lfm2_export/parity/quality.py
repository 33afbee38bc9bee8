"""Question 2: what did quantization cost? The artifact against fp32 eager, over text and on nano's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lfm2_export import runtimes
from lfm2_export.evaluate.exact import Exact
from lfm2_export.evaluate.metrics import Rows, summary
from lfm2_export.evaluate.questions import picture_accuracy, task_accuracy
from lfm2_export.evaluate.teacher_forcing import rows_of, rows_read
from lfm2_export.model.load import load_decoder, load_vision_encoder
from lfm2_export.parity import detail as details
from lfm2_export.parity.cache import CacheFigures, cache_figures, first_sequences
from lfm2_export.parity.counted import Counted
from lfm2_export.parity.fp32 import narrow_cache
from lfm2_export.parity.report import RuntimeReport
from lfm2_export.parity.subject import Subject
from lfm2_export.parity.work import Work
from lfm2_export.quantize.freed_memory import used_again
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session


def question_2(
    subject: Subject,
    work: Work,
    fp32: Sequence[Exact],
    reports: list[RuntimeReport],
    sessions: Mapping[str, Counted],
    references: Mapping[str, Session],
) -> tuple[dict[str, float] | None, CacheFigures]:
    """Against fp32 eager: divergence on text, accuracy on nano's questions.

    Returns fp32's own accuracy, and what a KV cache in the recipe's precision costs alone.

    Where an emulator is slow and has a reference that question 1 has just proven it equal to, that one answers.
    """
    config, tokenizer = subject.config, subject.tokenizer
    exact, *others = fp32
    asks = picture_accuracy if subject.artifact.manifest.takes_images else task_accuracy
    for report in reports:
        asked = references[report.runtime] if report.runtime in references else sessions[report.runtime]
        report.quality_of = asked.runtime
        subject.progress(f"{asked.runtime}: against fp32 on {subject.text.kind}", work.quality(report.runtime))
        sessions[report.runtime].rest()
        with used_again():
            rows = _rows(subject, work, asked, exact, None if report.runtime in references else report.runtime)
        report.quality = summary(rows)
        if report.details is not None:
            report.details.tokens = details.token_divergence(rows, subject.text.sequences)
            if subject.residual_stream is not None:
                streams = [layer.numpy() for layer in others[-1].layers[0]]
                details.add_cost_by_layer(report.details, subject.residual_stream, streams)
        if tokenizer is not None and subject.has_tasks:
            subject.progress(f"{asked.runtime}: nano's held-out questions", work.questions())
            report.task_accuracy = asks(asked, tokenizer, subject.effort.questions)
        sessions[report.runtime].rest()
    cached = first_sequences(subject.text.sequences)
    rounded = others[0] if narrow_cache(subject.recipe, config) else None
    cache = cache_figures(config, subject.recipe.cache, subject.window, cached, exact, rounded)
    if tokenizer is None or not subject.has_tasks:
        return None, cache
    subject.progress("eager: nano's held-out questions", work.questions())
    encoder = load_vision_encoder(subject.checkpoint) if subject.artifact.manifest.takes_images else None
    eager = EagerSession(load_decoder(subject.checkpoint).to(subject.device), subject.window, encoder)
    return asks(eager, tokenizer, subject.effort.questions), cache


def _rows(subject: Subject, work: Work, asked: Session, exact: Exact, runtime: str | None) -> Rows:
    """Read all text; through the `runtime`'s own session for that, where it has one."""
    manifest, sequences = subject.artifact.manifest, subject.text.sequences
    reader = runtimes.find(runtime).reading_session(subject.artifact.folder, manifest) if runtime else None
    if reader is None or runtime is None:
        return rows_of(asked, exact, sequences)

    def read(tokens: tuple[int, ...]) -> np.ndarray:
        rows = reader.read(tokens)
        subject.progress.advance(work.reading(runtime, len(tokens)))
        return rows

    return rows_read(reader.reset, read, exact, sequences)

"""Question 2: what did quantization cost? The artifact against fp32 eager, over text and on nano's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from lfm2_export import runtimes
from lfm2_export.evaluate.exact import Exact, Head, Reading, read_exactly
from lfm2_export.evaluate.metrics import Rows, joined, summary
from lfm2_export.evaluate.questions import picture_accuracy, task_accuracy
from lfm2_export.evaluate.teacher_forcing import rows_of, rows_read
from lfm2_export.model.load import load_decoder, load_vision_encoder
from lfm2_export.model.sequences import TokenSequences
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
    found = _rows_of_all(subject, work, exact, reports, sessions, references)
    for report in reports:
        asked, rows = references.get(report.runtime, sessions[report.runtime]), joined(found[report.runtime])
        report.quality_of, report.quality = asked.runtime, summary(rows)
        if report.details is not None:
            report.details.tokens = details.token_divergence(rows, subject.text.sequences)
            if subject.residual_stream is not None:
                streams = [layer.numpy() for layer in others[-1].layers[0]]
                details.add_cost_by_layer(report.details, subject.residual_stream, streams)
        if tokenizer is not None and subject.has_tasks:
            subject.progress(f"{asked.runtime}: nano's held-out questions", work.questions())
            report.task_accuracy = asks(asked, tokenizer, subject.effort.questions)
        sessions[report.runtime].rest()
    cached = first_sequences(subject.text.portions[0])
    rounded = others[0] if narrow_cache(subject.recipe, config) else None
    cache = cache_figures(config, subject.recipe.cache, subject.window, cached, exact, rounded)
    if tokenizer is None or not subject.has_tasks:
        return None, cache
    subject.progress("eager: nano's held-out questions", work.questions())
    encoder = load_vision_encoder(subject.checkpoint) if subject.artifact.manifest.takes_images else None
    eager = EagerSession(load_decoder(subject.checkpoint).to(subject.device), subject.window, encoder)
    return asks(eager, tokenizer, subject.effort.questions), cache


def _rows_of_all(
    subject: Subject,
    work: Work,
    first: Exact,
    reports: Sequence[RuntimeReport],
    sessions: Mapping[str, Counted],
    references: Mapping[str, Session],
) -> dict[str, list[Rows]]:
    """Read all text through every runtime, a portion of it at a time: fp32 has read the first.

    Each portion goes through one runtime after the other, so that fp32 reads it once for all of them: at the 350M shape
    that takes most of a minute of one core. A large model's sessions open once a portion instead, which takes less.
    """
    found: dict[str, list[Rows]] = {report.runtime: [] for report in reports}
    for number, portion in enumerate(subject.text.portions):
        exact = first if number == 0 else _read(subject, work, first.head, number)
        for report in reports:
            name, reference = report.runtime, references.get(report.runtime)
            asked = reference or sessions[name]
            what = ", ".join(filter(None, (subject.text.kind, subject.text.part(number))))
            subject.progress(f"{asked.runtime}: against fp32 on {what}", work.quality(name, portion))
            with used_again():
                found[name].append(_rows(subject, work, asked, exact, portion, None if reference else name))
            sessions[name].rest()
        del exact  # before the next one is read
    return found


def _read(subject: Subject, work: Work, head: Head, portion: int) -> Exact:
    """Read one of the further portions in fp32."""
    subject.progress(f"fp32: layer by layer over {subject.text.part(portion)}", work.fp32(portion))
    advance = partial(subject.progress.advance, work.layer(portion))
    reading = Reading(subject.text.portions[portion])
    (exact,) = read_exactly(subject.checkpoint, [reading], device=subject.device, read=advance, head=head)
    return exact


def _rows(
    subject: Subject, work: Work, asked: Session, exact: Exact, sequences: TokenSequences, runtime: str | None
) -> Rows:
    """Read text; through the `runtime`'s own session for that, where it has one."""
    manifest = subject.artifact.manifest
    reader = runtimes.find(runtime).reading_session(subject.artifact.folder, manifest) if runtime else None
    if reader is None or runtime is None:
        return rows_of(asked, exact, sequences)

    def read(tokens: tuple[int, ...]) -> np.ndarray:
        rows = reader.read(tokens)
        subject.progress.advance(work.reading(runtime, len(tokens)))
        return rows

    return rows_read(reader.reset, read, exact, sequences)

"""What a contender loses against fp32 on a text, in a fresh process: a JSON job on stdin, its result on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, TypeAdapter

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.bench import child
from lfm2_export.bench.contenders import Contender, find
from lfm2_export.bench.spec import Spec
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import ArtifactError, UsageError
from lfm2_export.evaluate.exact import Reading, read_exactly
from lfm2_export.evaluate.metrics import QuantizationLoss, Rows, joined, summary
from lfm2_export.evaluate.origin import checkpoint_of
from lfm2_export.evaluate.teacher_forcing import rows_read
from lfm2_export.evaluate.text import text_of_file
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.sequences import PORTION, TokenSequences, portions

_LONGEST = 512  # tokens of a sequence: what is said later leans on no more than a window holds
_OURS = ("artifact", "native")  # kinds of contenders that say what they were made from
_ANSWER: TypeAdapter[QuantizationLoss] = TypeAdapter(QuantizationLoss)


class HeldOut(BaseModel):
    """A text in token sequences, and the checkpoint whose fp32 is the measure."""

    name: str
    checkpoint: Path
    sequences: list[tuple[int, ...]]


class Job(BaseModel):
    spec: Spec
    text: HeldOut
    threads: int


def held_out(text: Path, specs: Sequence[Spec], source: str | None = None) -> HeldOut:
    """Return the text in sequences that all contenders' windows hold, for the checkpoint they were made from.

    That is `source`, or found by the first artifact, or an eager contender's. Raises UsageError where none of them
    says, or where the text is missing or too short, ArtifactError for an artifact of other weights.
    """
    artifacts = [open_artifact(spec.path) for spec in specs if spec.kind in _OURS]
    checkpoint = _checkpoint(specs, source) if not artifacts else checkpoint_of(artifacts[0], source)
    for other in artifacts[1:]:
        if other.manifest.source.weights_sha256 != checkpoint.digest():
            raise ArtifactError(f"{other.folder}: not made from the weights of {checkpoint.folder} (digest differs)")
    limit = min(_LONGEST, checkpoint.config.max_position_embeddings, *(each.manifest.window for each in artifacts))
    tokenizer = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    found = text_of_file(text, tokenizer, limit)
    return HeldOut(name=found.kind, checkpoint=checkpoint.folder, sequences=found.sequences)


def _checkpoint(specs: Sequence[Spec], source: str | None) -> Checkpoint:
    eager = next((str(spec.path) for spec in specs if spec.kind == "eager"), None)
    if source is None and eager is None:
        raise UsageError("--text: no contender says which checkpoint it was made from; pass --checkpoint FOLDER")
    return open_checkpoint(source or str(eager))


def loss(spec: Spec, text: HeldOut, threads: int) -> QuantizationLoss:
    """Return what the contender loses, fed token by token, in a process of its own; ArtifactError when that fails."""
    job = Job(spec=spec, text=text, threads=threads)
    return _ANSWER.validate_json(child.call(__name__, job.model_dump_json(), spec.name))


def _work(job: Job) -> QuantizationLoss:
    child.bind(job.threads)
    kind = find(job.spec.kind)
    kind.prepare(job.spec, job.threads)
    longest = max(map(len, job.text.sequences))
    contender, checkpoint = kind.load(job.spec, job.threads, longest), open_checkpoint(str(job.text.checkpoint))
    if contender.vocab != checkpoint.config.vocab_size:
        vocabularies = f"{contender.vocab} tokens, the checkpoint {checkpoint.config.vocab_size}"
        raise ArtifactError(f"{job.spec.path} is of another model than {checkpoint.folder}: it knows {vocabularies}")
    if contender.window < longest:
        raise ArtifactError(f"{job.spec.path}: its window holds {contender.window} tokens, a sequence {longest}")
    return summary(joined([_rows(contender, checkpoint, each) for each in portions(job.text.sequences, PORTION)]))


def _rows(contender: Contender, checkpoint: Checkpoint, sequences: TokenSequences) -> Rows:
    (exact,) = read_exactly(checkpoint, [Reading(sequences)])
    return rows_read(partial(contender.stand, 0), partial(_after_each, contender), exact, sequences)


def _after_each(contender: Contender, tokens: tuple[int, ...]) -> np.ndarray:
    return np.stack([contender.feed([token]).copy() for token in tokens])  # they may lie where the next call writes


def _answer(request: str) -> str:
    return _ANSWER.dump_json(_work(Job.model_validate_json(request))).decode()


if __name__ == "__main__":
    child.answer(_answer)

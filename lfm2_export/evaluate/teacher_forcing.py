"""Teacher forcing: a model is fed a text's own tokens, and its logits after each are compared with another model's.

An artifact is fed through its runtime: token by token, as an app would run it, or as drafts, where it verifies those
(one of the state laws says that their logits are the same). An eager model is fed many sequences at once: seconds
instead of minutes, for a quantized model that question 1 has proven an artifact equal to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from lfm2_export.evaluate.exact import Exact
from lfm2_export.evaluate.metrics import QuantizationLoss, Rows, compare_rows, joined, summary
from lfm2_export.model import sequences as token_sequences
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences, pieces
from lfm2_export.model.state import empty_state
from lfm2_export.runtimes.session import Session


def rows_of(session: Session, exact: Exact, sequences: TokenSequences) -> Rows:
    """Return the figures of every predicted token of every sequence, in order, against fp32."""
    return rows_read(session.reset, session.read, exact, sequences)


def rows_read(
    begin: Callable[[], None],
    after_each: Callable[[tuple[int, ...]], np.ndarray],
    exact: Exact,
    sequences: TokenSequences,
) -> Rows:
    """Return the same of anything that begins a conversation, and goes on with tokens to the logits after each.

    A few rows of logits are in memory at a time.
    """
    found: list[Rows] = []
    for number, tokens in enumerate(sequences):
        begin()
        for start, stop in pieces(len(tokens) - 1):
            ours = after_each(tokens[start:stop])
            theirs = exact.logits(number, start, stop).numpy()
            found.append(compare_rows(ours, theirs, np.array(tokens[start + 1 : stop + 1])))
    return joined(found)


@torch.inference_mode()
def score(decoder: Decoder, sequences: TokenSequences) -> list[np.ndarray]:
    """Return fp32 logits `[rows, vocab]` for each of the `batched` sequences: a row per token but a sequence's last."""
    scores = []
    for batch in batched(sequences):
        longest = max(map(len, batch)) - 1
        ids = torch.tensor([[*tokens[:-1], *[0] * (longest + 1 - len(tokens))] for tokens in batch])
        valid = torch.arange(longest) < torch.tensor([[len(tokens) - 1] for tokens in batch])
        start = torch.zeros(len(batch), dtype=torch.long)
        logits, _ = decoder(ids, start, None, empty_state(decoder.config, 1, len(batch)), all_logits=True)
        scores.append(logits[valid].numpy())
    return scores


def loss_of(
    actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], sequences: TokenSequences
) -> QuantizationLoss:
    """Return what lies between two models' scores of the same sequences."""
    following = [np.array([token for tokens in batch for token in tokens[1:]]) for batch in batched(sequences)]
    return summary(joined([compare_rows(*each) for each in zip(actual, expected, following, strict=True)]))


def batched(sequences: TokenSequences) -> Iterator[list[tuple[int, ...]]]:
    """Yield the sequences in the batches that `score` feeds; one without a token to predict is left out."""
    return token_sequences.batched([tokens for tokens in sequences if len(tokens) > 1])

"""Token sequences, several at once: batches of similar length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BATCH_TOKENS = 2048  # padding included
_ROWS = 64  # of logits in hand: each is 262 kB at a vocabulary of 65,536, and with fewer the head's product is slow

TokenSequences = Sequence[tuple[int, ...]]  # token ids, one tuple per text


def batched(sequences: TokenSequences, most: int = BATCH_TOKENS) -> Iterator[list[tuple[int, ...]]]:
    """Yield the sequences in batches, shortest first; a batch holds at most so many tokens, or one longer sequence.

    Without a sequence there is one empty batch.
    """
    batch: list[tuple[int, ...]] = []
    for sequence in sorted(sequences, key=len):
        if batch and len(sequence) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of `count` rows, as many at a time as logits should be in memory."""
    for start in range(0, count, _ROWS):
        yield start, min(start + _ROWS, count)

"""Token sequences, several at once: batches of similar length, so that little of a batch is padding; and portions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BATCH_TOKENS = 2048  # padding included
# tokens that fp32 reads at once: 17 MB of a layer's output at a hidden size of 1,024. At the 350M shape that takes a
# core 47 s, of which reading the weights once more is 1.2
PORTION = 4096
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


def portions(sequences: TokenSequences, least: int) -> Iterator[TokenSequences]:
    """Yield the sequences in order, so many at a time as make up at least that many tokens; the last may be fewer."""
    begin, tokens = 0, 0
    for end, sequence in enumerate(sequences, start=1):
        tokens += len(sequence)
        if tokens >= least or end == len(sequences):
            yield sequences[begin:end]
            begin, tokens = end, 0


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of `count` rows, as many at a time as logits should be in memory."""
    for start in range(0, count, _ROWS):
        yield start, min(start + _ROWS, count)

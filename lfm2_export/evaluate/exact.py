"""What the model says in fp32, without ever holding it in fp32: one layer at a time over all sequences.

Each layer is read from the checkpoint's mapped file, computes its part for every token of every sequence, and goes.
What is kept are the last hidden rows, from which logits are made a few rows at a time: a vocabulary of 65,536 makes
half a gigabyte of 2,000 rows. Rows of a long text are kept for a portion of it at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder
from lfm2_export.model.sequences import batched
from lfm2_export.quantize.apply import round_caches
from lfm2_export.quantize.streams import Stream

Sequences = Sequence[tuple[int, ...]]


class Reading(NamedTuple):
    """Sequences to read, and how: keys and values in a precision of `FLOAT_DTYPES`."""

    sequences: Sequences
    cache: str = "float32"


class Exact:
    """The logits after every token of every sequence of a reading."""

    def __init__(self, hidden: list[Tensor], layers: list[list[Tensor]], head: Head) -> None:
        """hidden: `[T, H]` of each sequence behind the final norm; layers: each one's residual stream, by layer."""
        self._hidden, self.layers, self.head = hidden, layers, head

    @torch.inference_mode()
    def logits(self, sequence: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `[rows, vocab] fp32` after the tokens `start` to `stop` of that sequence."""
        return F.linear(self._hidden[sequence][start:stop], self.head.weight).cpu()


class Head:
    """The matrix that makes logits, not read before any are asked for."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self._checkpoint, self._device = checkpoint, device

    @cached_property
    def weight(self) -> Tensor:
        """`[vocab, H]`, fp32."""
        return self._checkpoint.head().to(self._device, torch.float32)


@torch.inference_mode()
def read_exactly(
    checkpoint: Checkpoint,
    readings: Sequence[Reading],
    layers_of: Sequences = (),
    device: str = "cpu",
    read: Callable[[], None] = lambda: None,
    head: Head | None = None,
) -> list[Exact]:
    """Read all sequences, each layer's weights once; `read` is called after each. CheckpointError for NaN or infinity.

    Of the sequences `layers_of` the residual stream after each layer, `[T, H]`, is kept as well: they make
    one more reading, the last of those returned. PyTorch computes on `device`. `head` is an earlier reading's of the
    same checkpoint: it need not be in memory twice.
    """
    readings = [*readings, Reading(layers_of)] if layers_of else list(readings)
    streams: list[Stream] = []
    seen: list[list[Tensor]] = [[] for _ in layers_of]

    def completed(decoder: Decoder, part: str) -> None:
        decoder.get_submodule(part).to(device)
        if part == "embed_tokens":
            streams.extend(Stream(decoder, tuple(each.sequences)) for each in readings)
        elif part.startswith("layers."):
            layer = int(part.partition(".")[2])
            for stream, each in zip(streams, readings, strict=True):
                round_caches(decoder, each.cache)
                stream.advance(decoder, layer)
            if layers_of:
                for rows, residual in zip(seen, _by_sequence(streams[-1], layers_of, nn.Identity()), strict=True):
                    rows.append(residual.cpu())
            decoder.layers[layer] = nn.Identity()
            read()

    decoder = load_decoder(checkpoint, completed=completed)
    norm, head = decoder.embedding_norm, head or Head(checkpoint, device)
    found = [Exact(_by_sequence(s, r.sequences, norm), [], head) for s, r in zip(streams, readings, strict=True)]
    if layers_of:
        found[-1].layers = seen
    return found


def _by_sequence(stream: Stream, sequences: Sequences, through: nn.Module) -> list[Tensor]:
    """The stream's rows, `[T, H]` of each sequence in the order given; a stream holds them by length."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    outputs = zip(stream.outputs(through), batched(sequences), strict=True)
    each = (part for rows, batch in outputs for part in rows.split(list(map(len, batch))))
    parts = dict(zip(order, each, strict=True))
    return [parts[number] for number in range(len(sequences))]

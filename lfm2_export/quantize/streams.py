"""Calibration sequences on their way through a model, layer by layer, and what they say about each matrix's inputs.

Only the residual stream between two layers is kept, so the layers themselves may come and go one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.mixer import Call
from lfm2_export.model.sequences import TokenSequences, batched
from lfm2_export.model.state import State, empty_state


class _CapturedError(Exception):
    """Ends a layer's forward once the wanted input is seen."""


class _Batch:
    """Sequences of similar length, right-padded (causal layers never see that), each from an empty state."""

    def __init__(self, decoder: Decoder, sequences: Sequence[tuple[int, ...]]) -> None:
        longest, device = max(map(len, sequences)), decoder.device
        ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences], device=device)
        lengths = torch.tensor([[len(tokens)] for tokens in sequences], device=device)
        self.valid = torch.arange(longest, device=device) < lengths  # [B, T]
        self.state: State = empty_state(decoder.config, 1, len(sequences), device=device)
        self.call: Call = decoder.call(ids, torch.zeros_like(lengths[:, 0]))
        self.x: Tensor = decoder.embed_tokens(ids)  # [B, T, H]


class Stream:
    """All sequences at the same depth of one model: after the embedding, then after each `advance`."""

    def __init__(self, decoder: Decoder, sequences: TokenSequences) -> None:
        self.batches = [_Batch(decoder, part) for part in batched(sequences)]

    def advance(self, decoder: Decoder, layer: int) -> None:
        """Send all sequences through that layer."""
        for batch in self.batches:
            batch.x, _ = decoder.block(layer)(batch.x, batch.state, batch.call)

    def inputs(self, decoder: Decoder, layer: int, path: str) -> Iterator[Tensor]:
        """Yield what that layer's module at `path` is called with, `[tokens, columns]` for one batch after another."""
        return (given[0] for given in self.calls(decoder, layer, path))

    def calls(self, decoder: Decoder, layer: int, path: str) -> Iterator[tuple[Tensor, ...]]:
        """Yield every input of that layer's module at `path`, `[tokens, …]` each, for one batch after another."""
        seen: list[tuple[Tensor, ...]] = []
        hook = decoder.get_submodule(path).register_forward_pre_hook(_capture(seen))
        try:
            for batch in self.batches:
                try:
                    decoder.block(layer)(batch.x, batch.state, batch.call)
                except _CapturedError:
                    yield tuple(given[batch.valid] for given in seen.pop())
        finally:
            hook.remove()

    def outputs(self, through: nn.Module) -> Iterator[Tensor]:
        """The stream itself through a norm, `[tokens, H]` for one batch after another."""
        for batch in self.batches:
            yield through(batch.x)[batch.valid]


def _capture(into: list[tuple[Tensor, ...]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        into.append(inputs)
        raise _CapturedError

    return hook

"""The explicit form: methods over the caller's own state. The other form is `model/resident.py`."""

from __future__ import annotations

from torch import Tensor, nn

from lfm2_export.model.state import State
from lfm2_export.targets.xnnpack.network import DelegatedDecoder


class Explicit(nn.Module):
    """(tokens `[1, T]`, position `[1]`, state) → logits `[1, vocab]`; the state tensors are written in place.

    Of a probed network the values of its points follow the logits.
    """

    def __init__(self, network: DelegatedDecoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, position: Tensor, state: State) -> Tensor | tuple[Tensor, ...]:
        values = self.network.computed(tokens, position, state)
        for name, value in self.network.state.items():
            state[name].copy_(values[value])
        logits = values[self.network.logits]
        return (logits, *(values[point] for point in self.network.points)) if self.network.points else logits


class Verifying(nn.Module):
    """(tokens `[1, T]`, position `[1]`, state) → logits `[1, T, vocab]`, each conv state's columns `[1, L-1+T, H]`.

    Keys and values are written in place, behind the position; conv states are only read. The state as of the call's
    first n tokens is then `columns[:, n : n + L-1]`, and the position n tokens further.
    """

    def __init__(self, network: DelegatedDecoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, position: Tensor, state: State) -> tuple[Tensor, ...]:
        logits, columns = self.network(tokens, position, None, state)
        return logits, *columns.values()

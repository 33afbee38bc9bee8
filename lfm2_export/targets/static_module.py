"""A network for calls of a fixed number of tokens, in PyTorch, by a target's table: what static compilers are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network, Step
from lfm2_export.graph.walk import walk
from lfm2_export.model.decoder import Decoder
from lfm2_export.targets.static_border import Border
from lfm2_export.targets.static_entries import Entry

Table = Mapping[str, type[Entry]]  # kind of step → how it is written


class StaticModule(nn.Module):
    """A network for calls of exactly `rows` tokens; `static_calls.py` says what goes in and out.

    It returns the network's results and, behind them, the `further` values named.

    Every step's entry is a module, and its path deliberate: the decoder's for a step that is a module of it (a recipe's
    rules find a matrix by it), and below that of the module around it for one that is not (`layers.0.add`). So every
    node traced from here names its layer.
    """

    def __init__(
        self, table: Table, network: Network, decoder: Decoder, window: int, rows: int, further: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.network, self.returned = network, (*network.results, *further)
        self.border, self.slides = Border(decoder.config, rows), bool(decoder.config.sliding_layers)
        for step in network.steps:
            _place(self, entry_path(step), table[step.kind](step, decoder.get_submodule(step.path), window))

    def forward(self, tokens: Tensor, position: Tensor, length: Tensor, mask: Tensor, *others: Tensor) -> list[Tensor]:
        """`others`: the sliding mask where the model has sliding attention, then the state."""
        sliding_mask, state = (others[0], others[1:]) if self.slides else (None, others)
        call = self.border(position, length, mask, sliding_mask)
        given: dict[str, Tensor | None] = {"": None, TOKENS: tokens, POSITION: position, LENGTH: length}
        given |= {f"{STATE}{name}": tensor for name, tensor in zip(self.network.state, state, strict=True)}
        values = walk(self.network, given, lambda step, inputs: self.get_submodule(entry_path(step))(call, *inputs))
        return [cast(Tensor, values[name]) for name in self.returned]

    def exported(self, inputs: tuple[Tensor, ...]) -> ExportedProgram:
        """Return it in aten operators, for calls of the shapes of `inputs`; weights keep their paths."""
        return torch.export.export(self.eval(), inputs, strict=False)


def entry_path(step: Step) -> str:
    """Return the path of a step's entry in an `StaticModule`."""
    name = step.output.partition(":")[0]
    return step.path if step.path and "/" not in name else name.replace("/", ".")


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)

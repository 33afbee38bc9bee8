"""LFM2-MoE's MLP: a router chooses a few of many small SwiGLU MLPs for each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model import operators
from lfm2_export.model.layers import FeedForward
from lfm2_export.model.layout import Stored, StoresOtherwise, stored, within


class Experts(nn.ModuleList):
    """The experts of a layer; one step of a trace, however many there are."""

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """`x [B, T, H]`, weights and indices `[B, T, k]` → the weighted sum of the chosen experts' outputs.

        Only experts that some token chose are computed, and only for those tokens.
        """
        rows, weights, chosen = x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)
        mixed = torch.zeros_like(rows)
        for number in chosen.unique().tolist():
            token, place = (chosen == number).nonzero(as_tuple=True)
            mixed.index_add_(0, token, self[number](rows[token]) * weights[token, place].unsqueeze(-1))
        return mixed.view_as(x)


class ExpertChoice(nn.Module, StoresOtherwise):
    """The router and its experts, in an MLP's place."""

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        hidden, count, width = config.hidden_size, config.num_experts, config.moe_intermediate_size
        self.count, self.normalized = config.num_experts_per_tok, config.norm_topk_prob
        self.scale = config.routed_scaling_factor
        self.gate = nn.Linear(hidden, count, bias=False)
        self.expert_bias = nn.Parameter(torch.zeros(count)) if config.use_expert_bias else None
        self.experts = Experts(FeedForward(hidden, width) for _ in range(count))

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors: experts one by one, or all of them in two."""
        experts = range(len(self.experts))
        yield from (within("gate", each) for each in stored(self.gate, unsaved))
        if self.expert_bias is not None:
            yield Stored("expert_bias", tuple(self.expert_bias.shape), ("expert_bias",))
        if not unsaved:
            yield from (within("experts", each) for each in stored(self.experts, unsaved))
            return
        rows, columns = cast(FeedForward, self.experts[0]).w1.weight.shape
        both = tuple(f"experts.{number}.{name}.weight" for number in experts for name in ("w1", "w3"))
        yield Stored(
            "experts.gate_up_proj",
            (len(experts), 2 * rows, columns),
            both,
            lambda tensor: [part for expert in tensor for part in expert.chunk(2)],
        )
        down = tuple(f"experts.{number}.w2.weight" for number in experts)
        yield Stored("experts.down_proj", (len(experts), columns, rows), down, tuple[Tensor, ...])

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H]` → `[B, T, H]`."""
        weights, chosen = operators.choose_experts(
            self.gate(x), self.expert_bias, self.count, self.normalized, self.scale
        )
        return self.experts(x, weights, chosen)

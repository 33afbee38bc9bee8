"""Teaches a model to live with 4-bit weights while it still trains.

The nano model is there to show that a quantized export still answers, and so small a model would lose
answers to rounding alone. Late in training every other step therefore sees its matrices rounded as int4
export does (symmetric, one scale per group of inputs); the gradient passes straight through to the exact
weights, which are what is saved.
"""

import re

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel


class Int4(nn.Module):
    """Rounds a matrix, or a stack of experts', to int4 in groups along its inputs whenever `on`."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group
        self.on = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return weight
        with torch.no_grad():
            groups = weight.reshape(weight.shape[0], -1, self.group)
            scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 7.5
            error = ((groups / scale).round().clamp(-8, 7) * scale).reshape_as(weight) - weight
        return weight + error


class Rounding:
    """Adds the rounding to the matrices of every layer of the decoder; the tied embedding stays exact."""

    def __init__(self, model: PreTrainedModel, group: int = 128) -> None:
        decoder = getattr(model.model, "language_model", model.model)
        linears = [(module, "weight") for module in decoder.modules() if isinstance(module, nn.Linear)]
        mixtures = [module for module in decoder.modules() if hasattr(module, "gate_up_proj")]
        stacks = [(module, name) for module in mixtures for name in ("gate_up_proj", "down_proj")]
        self.matrices = [*linears, *stacks]
        self.rounds = [Int4(group) for _ in self.matrices]
        for (module, name), rounding in zip(self.matrices, self.rounds, strict=True):
            parametrize.register_parametrization(module, name, rounding)

    def switch(self, on: bool) -> None:
        """Rounded from the next step on, or exact."""
        for rounding in self.rounds:
            rounding.on = on

    def remove(self) -> None:
        """Leaves plain, exact weights behind."""
        self.switch(False)
        for module, name in self.matrices:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def exact_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns a copy of the weights, by their plain names, as they are behind any rounding."""
    hidden = re.compile(r"\.parametrizations\.(\w+)\.original$")
    return {hidden.sub(r".\1", name): tensor.clone() for name, tensor in model.state_dict().items()}

"""Keeps a mixture's experts busy alike while it trains, by the bias that LFM2-MoE adds for the choice alone.

A router left to itself sends ever more tokens to whichever expert got ahead. After each step the bias of an expert that
was chosen more often than the mean goes down a little, that of the others up; weights and loss see nothing of it
(Wang et al. 2024, arXiv:2408.15664).
"""

import torch
from torch import nn
from transformers import PreTrainedModel

RATE = 1e-3


class Balance:
    """Counts the choices of every router of a model, which may have none."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.blocks = [module for module in model.modules() if hasattr(module, "expert_bias")]
        self.counts = [torch.zeros_like(block.expert_bias) for block in self.blocks]
        for block, counts in zip(self.blocks, self.counts, strict=True):
            block.gate.register_forward_hook(self._counting(counts))

    def _counting(self, counts: torch.Tensor):
        def hook(module: nn.Module, inputs: tuple, outputs: tuple) -> None:
            if module.training or torch.is_grad_enabled():
                counts.add_(torch.bincount(outputs[2].flatten(), minlength=len(counts)))

        return hook

    def step(self) -> None:
        """Move every bias by what was chosen since the last step."""
        for block, counts in zip(self.blocks, self.counts, strict=True):
            block.expert_bias += RATE * torch.sign(counts.mean() - counts)
            counts.zero_()

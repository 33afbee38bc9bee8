"""How far rounding alone moves a model: eager against itself, its embeddings disturbed by about one fp32 rounding.

Two kernels that sum in another order differ by that much. In fp32 it stays that small; where activations are rounded
to int8 it tips roundings over, each tipped one tips others, and in a deep model it can end as a tenth of the largest
logit. No lowering agrees better with eager than eager does with itself, so where this exceeds a recipe's limit, this
is the yardstick.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lfm2_export.parity.cases import Case
from lfm2_export.parity.lowering import Distance, distance
from lfm2_export.runtimes.eager import EagerSession

_DISTURBANCE = 2.0**-20  # relative, standard deviation: what an fp32 sum of a thousand terms leaves open


def noise_floor(eager: EagerSession, cases: Sequence[Case]) -> Distance:
    """Of eager from its disturbed self, over these cases. Deterministic."""
    return distance(_Disturbed(eager.decoder, eager.window), eager, cases)


class _Disturbed(EagerSession):
    """The same decoder; every embedding it looks up is multiplied by 1 ± 2⁻²⁰."""

    def _run(self, tokens: Sequence[int], pad_to: int | None, all_logits: bool) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.position)

        def disturb(module: torch.nn.Module, given: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
            return x * (1 + _DISTURBANCE * torch.randn(x.shape, generator=generator))

        with self.decoder.embed_tokens.register_forward_hook(disturb):
            return super()._run(tokens, pad_to, all_logits)

"""THE traced image part: a pure function of (patches, grid) → what stands in a prompt for the image.

One program serves images of every size: a grid is a value. Nothing in it assumes a patch size, a number of layers or
an activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.model.layout import Stored, StoresOtherwise, stored, within
from lfm2_export.model.vision.lfm3 import Lfm3Tower
from lfm2_export.model.vision.projector import MergeThenNorm, NormThenMerge
from lfm2_export.model.vision.siglip2 import Siglip2Tower

_Tower = type[Siglip2Tower] | type[Lfm3Tower]
_Projector = type[MergeThenNorm] | type[NormThenMerge]
_PARTS: dict[str, tuple[_Tower, _Projector]] = {
    "lfm2_vl": (Siglip2Tower, MergeThenNorm),
    "lfm3_vl": (Lfm3Tower, NormThenMerge),
}


class VisionEncoder(nn.Module, StoresOtherwise):
    """A tower and its projector."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        tower, projector = _PARTS[config.model_type]
        self.vision_tower = tower(config)
        self.multi_modal_projector = projector(config)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Encode B images of up to N patches.

        patches `[B, N, values] fp32` in the processor's order, N a multiple of merge²; what lies behind an image's last
        patch is padding. grid `[B, 2] int64`: rows and columns of patches, multiples of `merge`.

        Returns `[B, N/merge², H]`: an image's first rows·columns/merge² are its embeddings, the rest means nothing.
        """
        return self.multi_modal_projector(self.vision_tower(patches, grid), grid)

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors."""
        for name, part in self.named_children():
            for each in stored(part, unsaved):
                owned = within(name, each)
                yield owned._replace(name=f"model.{owned.name}")


@lru_cache(maxsize=8)
def vision_skeleton(config: VisionConfig) -> VisionEncoder:
    """The image part of that shape without weights (meta tensors): for questions that need none. Read only."""
    with torch.device("meta"):
        return VisionEncoder(config).eval()


@lru_cache(maxsize=8)
def vision_layouts(config: VisionConfig) -> tuple[tuple[Stored, ...], ...]:
    """Every tensor of the image part of a checkpoint: in each way it may be laid out, the usual one first."""
    encoder = vision_skeleton(config)
    return tuple(encoder.stored(unsaved=False)), tuple(encoder.stored(unsaved=True))

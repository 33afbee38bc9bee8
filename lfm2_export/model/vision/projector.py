"""From the tower's patches to the decoder's embeddings: neighbours are merged, then two matrices."""

from __future__ import annotations

from torch import Tensor, nn

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.model.vision import grid as grids
from lfm2_export.model.vision.gelu import GELU

_PATCH_EPS = 1e-6  # of LFM3-VL's norm; LFM2-VL's has PyTorch's default


class Projector(nn.Module):
    """What both families have: `linear_2(gelu(linear_1(merged)))`."""

    def __init__(self, config: VisionConfig, norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.merge = config.merge
        bias = config.projector_bias
        self.activation = GELU(config.projector_activation)
        self.layer_norm = norm
        self.linear_1 = nn.Linear(_merged(config), config.projector_hidden_size, bias=bias)
        self.linear_2 = nn.Linear(config.projector_hidden_size, config.output_size, bias=bias)

    def projected(self, merged: Tensor) -> Tensor:
        """`[B, blocks, merge²·H]` → `[B, blocks, output]`."""
        return self.linear_2(self.activation(self.linear_1(merged)))


class MergeThenNorm(Projector):
    """LFM2-VL's: patches come row by row, and a whole block is normed, where there is a norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, nn.LayerNorm(_merged(config)) if config.projector_norm else None)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """`x [B, N, H]`, `grid [B, 2]` → `[B, N/merge², output]`."""
        merged = grids.merged_blocks(x, grid, self.merge)
        return self.projected(merged if self.layer_norm is None else self.layer_norm(merged))


class NormThenMerge(Projector):
    """LFM3-VL's: each patch is normed, and those of a block lie together already."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, nn.LayerNorm(config.hidden_size, _PATCH_EPS))

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """`x [B, N, H]` → `[B, N/merge², output]`; the grid plays no part."""
        assert self.layer_norm is not None
        return self.projected(grids.adjacent_blocks(self.layer_norm(x), self.merge))


def _merged(config: VisionConfig) -> int:
    return config.merge**2 * config.hidden_size

"""LFM3-VL's tower: gated convolutions over the grid of patches, and attention that sees all of an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.model.layers import FeedForward, HeadNorm, RMSNorm
from lfm2_export.model.layout import Stored, StoresOtherwise, stored, within
from lfm2_export.model.operators import rotate
from lfm2_export.model.vision import grid as grids

Angles = tuple[Tensor, Tensor]
_ON_DISK = {"patch_embed": "patchifier"}
_ATTENTION_ON_DISK = {"q_norm": "q_layernorm", "k_norm": "k_layernorm"}


class Lfm3Tower(nn.Module, StoresOtherwise):
    """Patches, normed, through layers of convolution or attention and MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(config.patch_values, config.hidden_size, bias=False)
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.layers = nn.ModuleList(_Layer(config, kind) for kind in config.layer_types)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        """`patches [B, N, values]` block by block, `grid [B, 2]` → `[B, N, H]`."""
        config = self.config
        cos, sin = grids.axial_rotary(patches, grid, config.head_dim, config.rope_theta, config.merge)
        x = self.embedding_norm(self.patch_embed(patches))
        for layer in self.layers:
            x = layer(x, grid, (cos, sin))
        return x

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors, some of which transformers calls otherwise in memory."""
        yield from _renamed(self, unsaved, _ON_DISK)


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig, kind: str) -> None:
        super().__init__()
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.conv = GridConv(config) if kind == "conv" else None
        self.self_attn = None if kind == "conv" else _Attention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, grid: Tensor, angles: Angles) -> Tensor:
        normed = self.operator_norm(x)
        if self.self_attn is None:
            assert self.conv is not None
            x = x + self.conv(normed, grid)
        else:
            x = x + self.self_attn(normed, grid, angles)
        return x + self.feed_forward(self.ffn_norm(x))


class _Attention(nn.Module, StoresOtherwise):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(hidden, kv_width, bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)
        self.q_norm = HeadNorm(config.head_dim, config.norm_eps)
        self.k_norm = HeadNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, grid: Tensor, angles: Angles) -> Tensor:
        query, key = rotate(self.q_norm(self.q_proj(x)), *angles), rotate(self.k_norm(self.k_proj(x)), *angles)
        return self.out_proj(grids.image_attention(query, key, self.v_proj(x), grid, self.head_dim))

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors."""
        yield from _renamed(self, unsaved, _ATTENTION_ON_DISK)


class GridConv(nn.Module, StoresOtherwise):
    """`out_proj(C ⊙ conv(B ⊙ x))`; as in the decoder's short convolutions the fused projection is kept as its three."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.merge = config.merge
        self.size = config.conv_kernel_size
        self.b_proj = nn.Linear(hidden, hidden, bias=False)
        self.c_proj = nn.Linear(hidden, hidden, bias=False)
        self.x_proj = nn.Linear(hidden, hidden, bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)
        self.kernel = nn.Parameter(torch.zeros(self.size**2, hidden))  # row by row

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        mixed = grids.grid_conv(self.b_proj(x) * self.x_proj(x), grid, self.kernel, self.merge)
        return self.out_proj(self.c_proj(x) * mixed)

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors: the kernel as a Conv2d's, the three projections as one matrix."""
        hidden = self.kernel.shape[1]
        projections = ("b_proj.weight", "c_proj.weight", "x_proj.weight")
        yield Stored("in_proj.weight", (3 * hidden, hidden), projections, lambda tensor: tensor.chunk(3))
        kernel = (hidden, 1, self.size, self.size)
        yield Stored("spatial_conv.weight", kernel, ("kernel",), lambda tensor: (tensor.flatten(1).T,))
        yield Stored("out_proj.weight", (hidden, hidden), ("out_proj.weight",))


def _renamed(module: nn.Module, unsaved: bool, on_disk: dict[str, str]) -> Iterator[Stored]:
    for name, part in module.named_children():
        called = name if unsaved else on_disk.get(name, name)
        for each in stored(part, unsaved):
            yield within(name, each)._replace(name=f"{called}.{each.name}")

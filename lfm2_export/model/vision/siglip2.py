"""LFM2-VL's tower: SigLIP2 for images of any grid (Tschannen et al. 2025, arXiv:2502.14786)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.model.layout import Stored, StoresOtherwise, stored, within
from lfm2_export.model.vision import grid as grids
from lfm2_export.model.vision.gelu import GELU

_ON_DISK = {
    "patch_embedding": "embeddings.patch_embedding",
    "position_embedding": "embeddings.position_embedding",
    "layers": "encoder.layers",
}


class Siglip2Tower(nn.Module, StoresOtherwise):
    """Patches with their positions, through layers of attention and MLP, and a last norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.patch_embedding = nn.Linear(config.patch_values, hidden)
        self.position_embedding = nn.Embedding(config.position_side**2, hidden)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(hidden, config.norm_eps)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        """`patches [B, N, values]` row by row, `grid [B, 2]` → `[B, N, H]`."""
        x = grids.with_positions(self.patch_embedding(patches), grid, self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x, grid)
        return self.post_layernorm(x)

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors; those of a head that pools become nothing."""
        prefix = "" if unsaved else "vision_model."
        for name, part in self.named_children():
            for each in stored(part, unsaved):
                yield within(name, each)._replace(name=f"{prefix}{_ON_DISK.get(name, name)}.{each.name}")
        if self.config.pooling_head:
            for name, shape in _pooling_head(self.config).items():
                yield Stored(f"{prefix}head.{name}", shape, (), lambda _: ())


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = _Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), grid)
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden = config.hidden_size
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        mixed = grids.image_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), grid, self.head_dim)
        return self.out_proj(mixed)


class _MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = GELU(config.activation)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def _pooling_head(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the head that makes one vector of an image, by name."""
    hidden, norm = config.hidden_size, nn.LayerNorm(config.hidden_size)
    with torch.device("meta"):
        attention, mlp = nn.MultiheadAttention(hidden, config.num_attention_heads), _MLP(config)
    parts = (("attention", attention), ("layernorm", norm), ("mlp", mlp))
    shapes = {f"{name}.{each}": tuple(t.shape) for name, part in parts for each, t in part.named_parameters()}
    return {"probe": (1, 1, hidden)} | shapes

"""One layer: a token mixer and an MLP around the residual stream, and which mixer each kind of layer has."""

from __future__ import annotations

from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.attention import Attention, SlidingAttention
from lfm2_export.model.experts import ExpertChoice
from lfm2_export.model.layers import FeedForward, RMSNorm
from lfm2_export.model.mixer import Call, Mixer
from lfm2_export.model.short_conv import ShortConv

LAYERS: dict[str, type[Mixer]] = {  # by the config's word
    "conv": ShortConv,
    "full_attention": Attention,
    "sliding_attention": SlidingAttention,
}


class Block(nn.Module):
    """Pre-norm residual block: `x + mixer(norm x)`, then `x + mlp(norm x)`; LFM3 has a norm behind each as well.

    Parts are in a checkpoint's order.
    """

    def __init__(self, config: LFM2Config, layer: int) -> None:
        super().__init__()
        kind = LAYERS[config.layer_types[layer]]
        self.states = tuple(f"{name}.{layer}" for name in kind.state_shapes(config, 1))
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attribute = kind.attribute
        self.add_module(kind.attribute, kind(config))
        self.post_operator_norm = _after(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = (
            ExpertChoice(config)
            if config.has_experts(layer)
            else FeedForward(config.hidden_size, config.intermediate_size)
        )
        self.post_ffn_norm = _after(config)

    @property
    def mixer(self) -> Mixer:
        """The layer's token mixer."""
        found = self.get_submodule(self.attribute)
        assert isinstance(found, Mixer)
        return found

    def forward(self, x: Tensor, state: dict[str, Tensor], call: Call) -> tuple[Tensor, dict[str, Tensor]]:
        """`x [B, T, H]` and the whole state → `[B, T, H]` and this layer's new state, by the contract's names."""
        mixed, new = self.mixer(self.operator_norm(x), tuple(state[name] for name in self.states), call)
        x = x + (mixed if self.post_operator_norm is None else self.post_operator_norm(mixed))
        mixed = self.feed_forward(self.ffn_norm(x))
        x = x + (mixed if self.post_ffn_norm is None else self.post_ffn_norm(mixed))
        return x, dict(zip(self.states, new, strict=True))


def _after(config: LFM2Config) -> RMSNorm | None:
    return RMSNorm(config.hidden_size, config.norm_eps) if config.use_sandwich_norm else None

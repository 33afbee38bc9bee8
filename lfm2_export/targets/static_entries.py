"""How a compiler that wants static shapes takes each kind of step, in PyTorch: batch 1, nothing computed on the host.

What differs from the traced model, and why (each was seen to fail or to be wrong otherwise on Qualcomm's HTP): keys and
values are concatenated with the cache; heads that share a key are folded into rows; the convolution is a sum of taps;
rotary tables are looked up by position; the conv state, the last keys and values of sliding attention and the last
valid row are picked by index.

Activations are `[1, rows, channels]`; those of heads become `[1, heads, rows, D]` where a step needs it. States other
than caches are `[1, columns, channels]`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.graph.steps import Step
from lfm2_export.model.operators import rotary_tables
from lfm2_export.targets.static_border import Call


class Entry(nn.Module):
    """A step as a module: its constants, and a `forward` from a call and the step's inputs to its outputs.

    `module` is the decoder's at the step's path.
    """

    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__()


class Embedding(Entry):
    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.weight = _constant(module.weight)

    def forward(self, call: Call, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class Linear(Entry):
    """A plain product, whatever the decoder's is; fp16 weights are float again, and fit a compiler's fp16 exactly."""

    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.weight = _constant(module.weight)
        self.bias = None if module.bias is None else _constant(module.bias)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(Entry):
    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.weight, self.eps = _constant(module.weight), cast(float, step.arguments[0])

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class HeadNorm(RMSNorm):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        """`[1, rows, heads·D]` → `[1, heads, rows, D]`."""
        return super().forward(call, by_head(x, self.weight.shape[0]))


class Rotary(Entry):
    cos: Tensor
    sin: Tensor

    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        width, theta, turned = cast(tuple[int, float, int], step.arguments)
        cos, sin = rotary_tables(torch.arange(window).view(1, 1, -1), width, theta, turned)
        half = width // 2  # both halves of a head turn by the same angles
        self.register_buffer("cos", cos[..., :half].contiguous())
        self.register_buffer("sin", sin[..., :half].contiguous())

    def forward(self, call: Call, tokens: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos.index_select(2, call.positions), self.sin.index_select(2, call.positions)


class Rotate(Entry):
    def forward(self, call: Call, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        x = by_head(x, 2 * half)
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(Entry):
    def forward(
        self, call: Call, query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (by_head(x, past_key.shape[3]) for x in (query, key, value))
        keys, values = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        return _attend(query, keys, values, call.mask), key, value


class SlidingAttention(Entry):
    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        (self.width,) = cast(tuple[int], step.arguments)

    def forward(
        self, call: Call, query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert call.sliding is not None
        keys = torch.cat((past_key, by_row(key)), dim=1)
        values = torch.cat((past_value, by_row(value)), dim=1)
        query, all_keys, all_values = (by_head(x, self.width) for x in (query, keys, values))
        mixed, kept = _attend(query, all_keys, all_values, call.sliding.mask), call.sliding.last_columns
        return mixed, keys.index_select(1, kept), values.index_select(1, kept)


class GateHeads(Entry):
    def forward(self, call: Call, x: Tensor, gate: Tensor) -> Tensor:
        heads = x.view(1, x.shape[1], gate.shape[2], -1)
        return (heads * torch.sigmoid(gate).unsqueeze(-1)).reshape(x.shape)


class ShortConv(Entry):
    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.taps = nn.ParameterList(_constant(tap.view(1, 1, -1).clone()) for tap in module.kernel)
        self.bias = None if module.bias is None else _constant(module.bias)

    def forward(self, call: Call, gated: Tensor, state: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, columns = gated.shape[1], torch.cat((state, gated), dim=1)
        mixed = columns[:, :rows] * self.taps[0]
        for tap in range(1, len(self.taps)):
            mixed = mixed + columns[:, tap : tap + rows] * self.taps[tap]
        if self.bias is not None:
            mixed = mixed + self.bias
        return mixed, columns.index_select(1, call.last_columns)


class LastValid(Entry):
    def forward(self, call: Call, x: Tensor, length: Tensor) -> Tensor:
        """`[1, rows, width]` → `[1, 1, width]`."""
        return x.index_select(1, length - 1)


class Add(Entry):
    def forward(self, call: Call, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Mul(Entry):
    def forward(self, call: Call, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Silu(Entry):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        return F.silu(x)


ENTRIES: dict[str, type[Entry]] = {
    "embedding": Embedding,
    "linear": Linear,
    "rms_norm": RMSNorm,
    "head_norm": HeadNorm,
    "rotary": Rotary,
    "rotate": Rotate,
    "attention": Attention,
    "sliding_attention": SlidingAttention,
    "gate_heads": GateHeads,
    "short_conv": ShortConv,
    "last_valid": LastValid,
    "add": Add,
    "mul": Mul,
    "silu": Silu,
}


def by_head(x: Tensor, width: int) -> Tensor:
    """`[1, rows, heads·D]` → `[1, heads, rows, D]`; as it is where it is by head already. `width` is D."""
    return x if x.dim() == 4 else x.view(1, x.shape[1], x.shape[2] // width, width).transpose(1, 2)


def by_row(x: Tensor) -> Tensor:
    """`[1, heads, rows, D]` → `[1, rows, heads·D]`; as it is where it is by row already."""
    return x if x.dim() == 3 else x.transpose(1, 2).reshape(1, x.shape[2], -1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention, `[1, rows, heads·D]`, of `query [1, heads, rows, D]` over `[1, kv_heads, columns, D]`."""
    heads, width = query.shape[1], query.shape[3]
    folded = query.reshape(1, keys.shape[1], -1, width)
    scores = folded @ keys.transpose(2, 3) * width**-0.5 + mask
    return by_row((torch.softmax(scores, dim=-1) @ values).reshape(1, heads, -1, width))


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float(), requires_grad=False)

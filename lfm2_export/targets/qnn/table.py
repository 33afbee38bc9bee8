"""How Qualcomm's HTP takes each kind of step, in PyTorch: static shapes, batch 1, nothing computed on the host.

What differs from the traced model, and why (each was seen to fail or to be wrong otherwise):
RMS norm is one operator over `[1, rows, width]`, since HTP normalizes a tensor with two row axes wrongly; keys and
values are concatenated with the cache; heads that share a key are folded into rows; the convolution is a sum of taps;
rotary tables are looked up by position; the conv state and the last valid row are picked by index.

Activations are `[1, rows, channels]`; those of heads become `[1, heads, rows, D]` where a step needs it. Conv states
are `[1, L-1, channels]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network, Step
from lfm2_export.graph.walk import walk
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.operators import rotary_tables
from lfm2_export.targets.qnn.border import Border, Call


class Entry(nn.Module):
    """A step as a module: its constants, and a `forward` from a call and the step's inputs to its outputs.

    `module` is the decoder's at the step's path.
    """

    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__()


class _Embedding(Entry):
    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.weight = _constant(module.weight)

    def forward(self, call: Call, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class _Linear(Entry):
    """A plain product, whatever the decoder's is; fp16 weights are float again, and fit HTP's fp16 exactly."""

    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.weight = _constant(module.weight)
        self.bias = None if module.bias is None else _constant(module.bias)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _RMSNorm(Entry):
    def __init__(self, step: Step, module: Any, window: int) -> None:
        super().__init__(step, module, window)
        self.weight, self.eps = _constant(module.weight), cast(float, step.arguments[0])

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """`x [1, rows, width]`, and no other rank."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class _HeadNorm(_RMSNorm):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        """`[1, rows, heads·D]` → `[1, heads, rows, D]`; to the norm, heads are rows."""
        rows, width = x.shape[1], self.weight.shape[0]
        heads = x.shape[2] // width
        normed = super().forward(call, x.view(1, rows * heads, width))
        return normed.view(1, rows, heads, width).transpose(1, 2)


class _Rotary(Entry):
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


class _Rotate(Entry):
    def forward(self, call: Call, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        x = _by_head(x, 2 * half)
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Attention(Entry):
    def forward(
        self, call: Call, query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads, width = past_key.shape[1], past_key.shape[3]
        query, key, value = (_by_head(x, width) for x in (query, key, value))
        heads, rows = query.shape[1], query.shape[2]
        keys, values = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        folded = query.reshape(1, kv_heads, -1, width)
        scores = folded @ keys.transpose(2, 3) * width**-0.5 + call.mask
        mixed = (torch.softmax(scores, dim=-1) @ values).reshape(1, heads, rows, width)
        return mixed.transpose(1, 2).reshape(1, rows, heads * width), key, value


class _ShortConv(Entry):
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


class _LastValid(Entry):
    def forward(self, call: Call, x: Tensor, length: Tensor) -> Tensor:
        """`[1, rows, width]` → `[1, 1, width]`."""
        return x.index_select(1, length - 1)


class _Add(Entry):
    def forward(self, call: Call, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class _Mul(Entry):
    def forward(self, call: Call, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class _Silu(Entry):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        return F.silu(x)


TABLE: dict[str, type[Entry]] = {
    "embedding": _Embedding,
    "linear": _Linear,
    "rms_norm": _RMSNorm,
    "head_norm": _HeadNorm,
    "rotary": _Rotary,
    "rotate": _Rotate,
    "attention": _Attention,
    "short_conv": _ShortConv,
    "last_valid": _LastValid,
    "add": _Add,
    "mul": _Mul,
    "silu": _Silu,
}


class HtpModule(nn.Module):
    """A network for calls of exactly `rows` tokens; `qualcomm/calls.py` says what goes in and out.

    It returns the network's results and, behind them, the `further` values named.

    Every step's entry is a module, and its path deliberate: the decoder's for a step that is a module of it (a recipe's
    rules find a matrix by it), and below that of the module around it for one that is not (`layers.0.add`). So every
    node traced from here names its layer.
    """

    def __init__(self, network: Network, decoder: Decoder, window: int, rows: int, further: Iterable[str] = ()) -> None:
        super().__init__()
        self.network, self.returned = network, (*network.results, *further)
        self.border = Border(decoder.config, rows)
        for step in network.steps:
            _place(self, entry_path(step), TABLE[step.kind](step, decoder.get_submodule(step.path), window))

    def forward(self, tokens: Tensor, position: Tensor, length: Tensor, mask: Tensor, *state: Tensor) -> list[Tensor]:
        call = self.border(position, length, mask)
        given: dict[str, Tensor | None] = {"": None, TOKENS: tokens, POSITION: position, LENGTH: length}
        given |= {f"{STATE}{name}": tensor for name, tensor in zip(self.network.state, state, strict=True)}
        values = walk(self.network, given, lambda step, inputs: self.get_submodule(entry_path(step))(call, *inputs))
        return [cast(Tensor, values[name]) for name in self.returned]

    def exported(self, inputs: tuple[Tensor, ...]) -> GraphModule:
        """Return it in aten operators, for calls of the shapes of `inputs`; weights keep their paths."""
        return torch.export.export(self.eval(), inputs, strict=False).module()


def entry_path(step: Step) -> str:
    """Return the path of a step's entry in an `HtpModule`."""
    name = step.output.partition(":")[0]
    return step.path if step.path and "/" not in name else name.replace("/", ".")


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


def _by_head(x: Tensor, width: int) -> Tensor:
    """`[1, rows, heads·D]` → `[1, heads, rows, D]`; as it is where it is by head already. `width` is D."""
    return x if x.dim() == 4 else x.view(1, x.shape[1], x.shape[2] // width, width).transpose(1, 2)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float(), requires_grad=False)

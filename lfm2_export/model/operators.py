"""The operators that a trace keeps whole: what a target's table has an entry for, beside products, lookups and sums.

Each is a `torch.library` operator of kind CompositeImplicitAutograd: eager PyTorch (autograd and tensor subclasses
included) runs the body below, `torch.export` keeps the call, and `run_decompositions` gives the body in aten operators
to whoever lowers those. Activations are `[B, T, channels]` throughout, heads side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

NAMESPACE = "lfm2_export"
MASKED = -1e9  # finite: exp() of it is exactly 0 in fp32, and no backend turns it into a NaN

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def operator(schema: str) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Define the body as an operator of its own name; callers get the operator."""

    def define(body: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        name = body.__name__
        _LIBRARY.define(f"{name}{schema}")
        _LIBRARY.impl(name, body, "CompositeImplicitAutograd")
        operator: Any = getattr(getattr(torch.ops, NAMESPACE), name).default
        return cast(Callable[_Given, _Result], operator)

    return define


@operator("(Tensor x, Tensor weight, float eps) -> Tensor")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


@operator("(Tensor x, Tensor weight, float eps) -> Tensor")
def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` of every head of `x [B, T, heads·D]` by itself; weight `[D]`."""
    heads = x.unflatten(-1, (-1, weight.shape[0]))
    return (heads * torch.rsqrt(heads.pow(2).mean(-1, keepdim=True) + eps) * weight).flatten(-2)


@operator("(Tensor tokens, Tensor position, int width, float theta, int turned) -> (Tensor, Tensor)")
def rotary(tokens: Tensor, position: Tensor, width: int, theta: float, turned: int) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE (Su et al. 2021, arXiv:2104.09864) for `tokens [B, T]` behind `position [B]`.

    `[B, T, width]` each, the angles of a head's first half repeated for its second. Of the pairs of channels only the
    first `turned` turn; the others stay as they are.
    """
    positions = position.unsqueeze(1) + torch.arange(tokens.shape[1], device=tokens.device)
    return rotary_tables(positions, width, theta, turned)


@operator("(Tensor x, Tensor cos, Tensor sin) -> Tensor")
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of every head of `x [B, T, heads·D]`, halves convention (as Hugging Face's Llama and LFM2)."""
    heads = x.unflatten(-1, (-1, cos.shape[-1]))
    first, second = heads.chunk(2, dim=-1)
    return (heads * cos.unsqueeze(2) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(2)).flatten(-2)


@operator(
    "(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, Tensor position, ScalarType cache)"
    " -> (Tensor, Tensor, Tensor)"
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    position: Tensor,
    cache: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention of the call's T tokens over the filled part of the window and over themselves.

    query `[B, T, heads·D]`, key and value `[B, T, kv_heads·D]`; past_key and past_value `[B, kv_heads, S, D]`, of which
    the first `position [B]` columns count, only read. Returns the mixed values `[B, T, heads·D]` and this call's key
    and value `[B, kv_heads, T, D]`. Query heads of one KV head are folded into the time axis, so the cache is never
    repeated.

    With a `cache` narrower than fp32 it rounds where fused kernels do (ExecuTorch's `custom_sdpa`): what goes into each
    product and what comes out of the last; sums and the softmax's denominator stay fp32.
    """
    _, kv_heads, window, width = past_key.shape
    query, key, value = (_rounded(x.unflatten(-1, (-1, width)).transpose(1, 2), cache) for x in (query, key, value))
    batch, heads, tokens, _ = query.shape
    groups = heads // kv_heads
    offsets = torch.arange(tokens, device=query.device)
    past_mask = _additive(torch.arange(window, device=query.device) < position.unsqueeze(1)).view(-1, 1, 1, 1, window)
    causal_mask = _additive(offsets.unsqueeze(0) <= offsets.unsqueeze(1))
    folded = query.reshape(batch, kv_heads, -1, width)
    past = (folded @ past_key.transpose(2, 3) * width**-0.5).view(batch, kv_heads, groups, -1, window) + past_mask
    new = folded @ key.transpose(2, 3) * width**-0.5
    new = new.view(batch, kv_heads, groups, -1, key.shape[2]) + causal_mask
    scores = torch.cat((past, new), dim=-1)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    total = weights.sum(-1, keepdim=True).flatten(2, 3)
    weights = _rounded(weights, cache)
    past_weights = weights.narrow(-1, 0, window).flatten(2, 3)
    new_weights = weights.narrow(-1, window, key.shape[2]).flatten(2, 3)
    mixed = _rounded((past_weights @ past_value + new_weights @ value) / total, cache).view(batch, heads, -1, width)
    return mixed.transpose(1, 2).flatten(2), key, value


@operator(
    "(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, Tensor position, Tensor? length,"
    " int width) -> (Tensor, Tensor, Tensor)"
)
def sliding_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    position: Tensor,
    length: Tensor | None,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention of each of the call's T tokens over itself and the W-1 tokens before it.

    query `[B, T, heads·D]`, key and value `[B, T, kv_heads·D]` with D = `width`; past_key and past_value
    `[B, kv_heads·D, W-1]`: what the last W-1 tokens left, oldest first, of which the last `position [B]` count.
    Returns the mixed values `[B, T, heads·D]` and the new state, the last W-1 columns before the padding (`length [B]`
    valid tokens; None: all T).
    """
    tokens, reach = query.shape[1], past_key.shape[2]
    keys = torch.cat((past_key.transpose(1, 2), key), dim=1)  # [B, W-1+T, kv_heads·D]
    values = torch.cat((past_value.transpose(1, 2), value), dim=1)
    columns = torch.arange(reach + tokens, device=query.device)
    ahead = columns.unsqueeze(0) - torch.arange(tokens, device=query.device).unsqueeze(1)  # [T, W-1+T]
    within = (ahead >= 0) & (ahead <= reach)
    filled = columns.unsqueeze(0) >= reach - position.unsqueeze(1)  # [B, W-1+T]
    mask = _additive(within.unsqueeze(0) & filled.unsqueeze(1)).unsqueeze(1).unsqueeze(1)  # [B, 1, 1, T, W-1+T]
    by_head = [x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (query, keys, values)]
    grouped = by_head[0].unflatten(1, (by_head[1].shape[1], -1))  # [B, kv_heads, groups, T, D]
    scores = grouped @ by_head[1].unsqueeze(2).transpose(3, 4) * width**-0.5 + mask
    mixed = scores.softmax(-1) @ by_head[2].unsqueeze(2)
    mixed = mixed.flatten(1, 2).transpose(1, 2).flatten(2)
    return mixed, _last_columns(keys, reach, length), _last_columns(values, reach, length)


@operator("(Tensor x, Tensor gate) -> Tensor")
def gate_heads(x: Tensor, gate: Tensor) -> Tensor:
    """Every head of `x [B, T, heads·D]` times the sigmoid of its `gate [B, T, heads]`."""
    heads = x.unflatten(-1, (gate.shape[-1], -1))
    return (heads * gate.sigmoid().unsqueeze(-1)).flatten(-2)


@operator("(Tensor scores, Tensor? bias, int count, bool normalized, float scale) -> (Tensor, Tensor)")
def choose_experts(
    scores: Tensor, bias: Tensor | None, count: int, normalized: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The router of LFM2-MoE: each token's `count` experts and their weights, both `[B, T, count]`, indices int64.

    An expert's weight is the sigmoid of its score, `[B, T, experts]`; `bias [experts]` is added for the choice alone.
    When `normalized` the weights of the chosen ones sum to 1; then they are multiplied by `scale`.
    """
    weights = scores.sigmoid()
    chosen = (weights if bias is None else weights + bias).topk(count, dim=-1).indices
    weights = weights.gather(-1, chosen)
    if normalized:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    return weights * scale, chosen


@operator("(Tensor gated, Tensor state, Tensor kernel, Tensor? bias, Tensor? length) -> (Tensor, Tensor)")
def short_conv(
    gated: Tensor, state: Tensor, kernel: Tensor, bias: Tensor | None, length: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution of `gated [B, T, H]` behind `state [B, H, L-1]`, kernel `[L, H]`, bias `[H]`.

    Returns the convolution `[B, T, H]` and the new state `[B, H, L-1]`: the last L-1 columns before the padding
    (`length [B]` valid tokens; None: all T), which reach back into the old state when fewer than L-1 are valid. The
    convolution is L multiply-adds over shifted views, so nothing but the small state is transposed.
    """
    tokens, width = gated.shape[1], kernel.shape[0]
    columns = torch.cat((state.transpose(1, 2), gated), dim=1)  # [B, L-1+T, H]
    mixed = columns.narrow(1, 0, tokens) * kernel[0]
    for shift in range(1, width):
        mixed = mixed + columns.narrow(1, shift, tokens) * kernel[shift]
    if bias is not None:
        mixed = mixed + bias
    return mixed, _last_columns(columns, width - 1, length)


@operator("(Tensor x, Tensor? length) -> Tensor")
def last_valid(x: Tensor, length: Tensor | None) -> Tensor:
    """`[B, T, H]` → `[B, H]`: each row's last token before its padding (`length [B]` valid ones; None: all T)."""
    if length is None:
        return x[:, -1]
    index = (length - 1).view(-1, 1, 1).expand(-1, 1, x.shape[2])
    return x.gather(1, index).squeeze(1)


def rotary_tables(positions: Tensor, width: int, theta: float, turned: int) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE at any `positions [...] int64`, `[..., width] fp32` each."""
    frequencies = rotary_frequencies(width, theta, turned).to(positions.device)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotary_frequencies(width: int, theta: float, turned: int) -> Tensor:
    """RoPE's angle per position of each pair of channels, `[width/2] fp32`; 0 for all but the first `turned`."""
    pairs = torch.arange(0, width, 2, dtype=torch.float32)
    frequencies = 1.0 / theta ** (pairs / width)
    return frequencies if 2 * turned == width else torch.where(pairs < 2 * turned, frequencies, 0.0)


def _last_columns(columns: Tensor, count: int, length: Tensor | None) -> Tensor:
    """`[B, count+T, C]` → `[B, C, count]`: what lies before the padding (`length [B]` valid of T; None: all)."""
    if length is None:
        return columns.narrow(1, columns.shape[1] - count, count).transpose(1, 2)
    index = length.view(-1, 1) + torch.arange(count, device=columns.device)
    return columns.gather(1, index.unsqueeze(-1).expand(-1, -1, columns.shape[2])).transpose(1, 2)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype == torch.float32 else x.to(dtype).float()


def _additive(visible: Tensor) -> Tensor:
    return (1.0 - visible.to(torch.float32)) * MASKED

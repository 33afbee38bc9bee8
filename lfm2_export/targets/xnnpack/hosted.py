"""What the method computes itself, around the delegate's calls, in operators that ExecuTorch has kernels for.

For every such step: how it is computed, and, where a delegate call may read the result, its extent from that of its
first input. A KV head is a batch entry to the attention operator: its keys then lie one after the other, which reads a
long cache three times faster than the operator's usual layout of time before heads (measured at 8192 tokens, fp32).
"""

from __future__ import annotations

from typing import cast

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  defines llama::custom_sdpa and update_cache
from torch import Tensor

from lfm2_export.targets.xnnpack.delegate_graph import Extent
from lfm2_export.targets.xnnpack.delegated import Place


def lookup(at: Place, tokens: Tensor) -> Tensor:
    """The embedding's rows `[1, T, H]`; the module is one of `embedding.py`."""
    return cast(Tensor, at.module(tokens))


def lookup_extent(at: Place, tokens: Extent) -> Extent:
    """The call's tokens in the table's width; the module is the decoder's."""
    return Extent((*tokens.shape, at.module.weight.shape[1]), tokens.varies)


def start(at: Place, position: Tensor) -> int:
    """The position as a number, for operators that take it so."""
    number = cast(int, position.item())
    torch._check(number >= 0)
    return number


def offsets(at: Place, tokens: Tensor) -> Tensor:
    """`[T] fp32`: 0, 1, …"""
    return torch.arange(tokens.shape[1], dtype=torch.float32)


def offsets_extent(at: Place, tokens: Extent) -> Extent:
    """The axis of the tokens, or of embeddings, alone."""
    return Extent(tokens.shape[1:2], 0)


def seen(at: Place, position: Tensor) -> Tensor:
    """`[1] fp32`: how many tokens came before."""
    return position.to(torch.float32)


def attend(at: Place, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """query `[kv_heads, T, groups, D]`; key, value `[kv_heads, T, 1, D]`, written into the caches at `start`.

    Each token sees those up to itself. What a single token can do otherwise is in `single_token.py`.
    """
    torch.ops.llama.update_cache(key.to(keys.dtype), keys, start)
    torch.ops.llama.update_cache(value.to(keys.dtype), values, start)
    mixed = torch.ops.llama.custom_sdpa(query.to(keys.dtype), keys, values, start, None, 0.0, True)
    return cast(Tensor, mixed).to(torch.float32)


def last_columns(at: Place, columns: Tensor, tokens: Tensor) -> Tensor:
    """The new conv state: what a convolution over T tokens leaves of its columns `[1, L-1+T, H]`."""
    (kept,) = at.arguments
    return columns.narrow(1, tokens.shape[1], kept)


def last_row(at: Place, x: Tensor) -> Tensor:
    """The last token's row, `[1, 1, H]`."""
    return x[:, -1:]


def last_row_extent(at: Place, x: Extent) -> Extent:
    """One row, however many tokens there are."""
    return Extent((1, 1, x.shape[2]))


def same_extent(at: Place, x: Extent) -> Extent:
    """The extent of the first input."""
    return Extent(x.shape, x.varies)

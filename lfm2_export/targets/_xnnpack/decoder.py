"""The traced model as a chain of XNNPACK calls with attention between them.

A call of the delegate runs from one attention to the next: the end of an attention block, its MLP, the conv blocks that
follow, and the next block's queries, keys and values. Outside are the embedding lookup, ExecuTorch's fused
`llama::custom_sdpa`, which reads the filled part of the cache only, `llama::update_cache`, which writes into it, and
picking the last token. Batch 1 only.

A KV head is a batch entry to the attention operator: its keys then lie one after the other, which reads a long cache
three times faster than the operator's usual layout of time before heads (measured at 8192 tokens, fp32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.delegate import executorch_call_delegate
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  defines llama::custom_sdpa and update_cache
from torch import Tensor, nn

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import State
from lfm2_export.targets._xnnpack.embedding import NibbleEmbedding, embedding
from lfm2_export.targets._xnnpack.stretch import head, stretch, stretches


class DelegatedDecoder(nn.Module):
    """A `Decoder` whose network is XNNPACK payloads, for at most `limit` tokens a call, over caches that it writes."""

    def __init__(self, decoder: Decoder, limit: int, tapped: bool = False) -> None:
        super().__init__()
        self.config = decoder.config
        self.embed_tokens = embedding(decoder.embed_tokens)
        weights = NamedDataStore()
        swapped = isinstance(self.embed_tokens, NibbleEmbedding)
        self.plan = stretches(self.config.layer_types)
        made = [stretch(decoder, part, limit, weights, swapped and part.finishes is None, tapped) for part in self.plan]
        made.append(head(decoder, weights, tapped))
        self.weights = frozenset(weights.pte_data)  # keys: SHA-256 of the bytes, with a prefix for scales
        made[-1].lowered._named_data_store_output = weights.get_named_data_store_output()  # one list for all calls
        self.points = [call.points for call in made]
        self.calls = nn.ModuleList(call.lowered for call in made)
        self.operators = sum(call.operators for call in made)  # inside the delegate

    def forward(
        self, tokens: Tensor, position: Tensor, length: None, state: State, taps: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """tokens `[1, T] int64`, position `[1] int64`, no padding → logits `[1, vocab]`, new conv states.

        The caches in `state`, `[kv_heads, S, 1, head_dim]`, are written in place; conv states, `[1, L-1, hidden]`, are
        only read. Of a tapped network `taps` gets the values of `points`, in their order.
        """
        x = self.embed_tokens(tokens)
        start = position.item()
        torch._check(start >= 0)
        times = [torch.arange(tokens.shape[1], dtype=torch.float32), position.to(torch.float32)]
        rotary: list[Tensor] = []
        mixed: list[Tensor] = []
        new: State = {}
        for part, call, points in zip(self.plan, self.calls, self.points, strict=False):
            before = (times if part.finishes is None else [*mixed, *rotary]) if part.attention is not None else mixed
            states = [state[f"conv_state.{layer}"] for layer in part.convs]
            results = _untapped(executorch_call_delegate(call, x, *before, *states), points, taps)
            if part.finishes is None and part.attention is not None:
                rotary = [results.pop(0), results.pop(0)]
            for layer in part.convs:
                new[f"conv_state.{layer}"] = results.pop(0).narrow(1, tokens.shape[1], self.config.conv_L_cache - 1)
            if part.attention is not None:
                caches = state[f"key.{part.attention}"], state[f"value.{part.attention}"]
                query, key, value, *results = results
                mixed = [_attend(query, key, value, *caches, cast(int, start))]
            if results:
                x = results[0]
        return _untapped(executorch_call_delegate(self.calls[-1], x[:, -1:]), self.points[-1], taps)[0], new


def _untapped(results: Sequence[Tensor], points: list[str], taps: list[Tensor] | None) -> list[Tensor]:
    """A call's own results; those of its points, which come last, go into `taps`."""
    own = len(results) - len(points)
    if taps is not None:
        taps += results[own:]
    return list(results[:own])


def _attend(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """query `[kv_heads, T, groups, D]`; key, value `[kv_heads, T, 1, D]`, written into the caches at `start`."""
    operators, dtype = torch.ops.llama, keys.dtype
    operators.update_cache(key.to(dtype), keys, start)
    operators.update_cache(value.to(dtype), values, start)
    mixed: Tensor = operators.custom_sdpa(query.to(dtype), keys, values, start, None, 0.0, True)
    return mixed.to(torch.float32)

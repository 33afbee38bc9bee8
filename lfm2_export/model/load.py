"""Checkpoint → traced model, tensor by tensor: the peak is what is kept of them and the tensor in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.model.decoder import Decoder


def load_decoder(
    checkpoint: Checkpoint,
    loaded: Callable[[Decoder, str], None] = lambda *_: None,
    completed: Callable[[Decoder, str], None] = lambda *_: None,
) -> Decoder:
    """The checkpoint as an fp32 `Decoder` in eval mode, without gradients. CheckpointError for NaN or infinity.

    `loaded(decoder, path)` is told of each module whose weight is there, and may replace it by something smaller.
    `completed(decoder, part)` likewise of each whole part, in the order they are computed in: `embed_tokens`,
    `layers.0` and so on, `embedding_norm`, and an untied `lm_head`.
    """
    with torch.device("meta"):
        decoder = Decoder(checkpoint.config)
    decoder.eval()
    for part, tensors in groupby(checkpoint.tensors(), lambda named: _part(named[0])):
        for name, tensor in tensors:
            _place(decoder, name, tensor, loaded)
        completed(decoder, part)
    return decoder


def _place(decoder: Decoder, name: str, tensor: Tensor, loaded: Callable[[Decoder, str], None]) -> None:
    for path, part in _parts(name, tensor):
        owner, _, attribute = path.rpartition(".")
        setattr(decoder.get_submodule(owner), attribute, torch.nn.Parameter(part, requires_grad=False))
        if attribute != "weight":
            continue
        if owner == "embed_tokens" and decoder.config.tie_word_embeddings:
            decoder.lm_head.weight = decoder.embed_tokens.weight
            loaded(decoder, "lm_head")
        loaded(decoder, owner)


def _part(name: str) -> str:
    """`model.layers.3.ffn_norm.weight` → `layers.3`; `lm_head.weight` → `lm_head`."""
    names = name.removeprefix("model.").split(".")
    return ".".join(names[:2] if names[0] == "layers" else names[:1])


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(path in the model, fp32 tensor): one each, but three for the fused `in_proj`, whose rows are B, C and x."""
    path = name.removeprefix("model.")
    if ".conv.in_proj." in path:
        for part, rows in zip("bcx", tensor.chunk(3), strict=True):
            yield path.replace("in_proj", f"{part}_proj"), _own(rows)
    elif path.endswith(".conv.conv.weight"):
        yield path.replace("conv.conv.weight", "conv.kernel"), _own(tensor[:, 0].T)
    else:
        yield path.replace("conv.conv.bias", "conv.bias"), _own(tensor)


def _own(tensor: Tensor) -> Tensor:
    """An fp32 copy: a stored tensor is a view of the mapped file, which the model must outlive."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

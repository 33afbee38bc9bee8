"""Checkpoint → traced model, tensor by tensor: the peak is what is kept of them and the tensor in hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor

from lfm2_export.checkpoint import source as places
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import UsageError
from lfm2_export.model.decoder import Decoder, layouts
from lfm2_export.model.layout import Stored
from lfm2_export.model.vision.encoder import VisionEncoder, vision_layouts


def open_checkpoint(source: str, revision: str | None = None, base: str | None = None) -> Checkpoint:
    """Open an embedded one ("nano"), a folder in Hugging Face layout, or a hub id "owner/name".

    A hub's files come from its cache where they are there; HF_HUB_OFFLINE is honoured. A LoRA adapter is merged onto
    `base`, or the one it names. Names and shapes of its tensors are held against the model that its config describes;
    no weight is read. Raises UsageError for a place that does not exist, CheckpointError for a config or header that is
    wrong.
    """
    return places.open_checkpoint(source, revision, expected=_expected, base=base)


def tensor_shapes(config: LFM2Config | VisionConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a checkpoint by name, of a decoder or of what is beside one.

    A tied checkpoint has no head of its own.
    """
    return _expected(config)[0]


def _expected(config: LFM2Config | VisionConfig) -> list[dict[str, tuple[int, ...]]]:
    ways = layouts(config) if isinstance(config, LFM2Config) else vision_layouts(config)
    return [{each.name: each.shape for each in way} for way in ways]


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
    becomes = {each.name: each for way in layouts(checkpoint.config) for each in way}
    for part, tensors in groupby(checkpoint.tensors(), lambda named: _part(becomes[named[0]])):
        for name, tensor in tensors:
            _place(decoder, becomes[name], tensor, loaded)
        completed(decoder, part)
    return decoder


def load_vision_encoder(
    checkpoint: Checkpoint, loaded: Callable[[VisionEncoder, str], None] = lambda *_: None
) -> VisionEncoder:
    """The image part of a vision-language checkpoint in fp32, in eval mode, without gradients.

    `loaded(encoder, path)` is told of each module whose weight is there, and may replace it by something smaller.

    Raises UsageError for a checkpoint that has none, CheckpointError for NaN or infinity.
    """
    if checkpoint.vision is None:
        raise UsageError(f"{checkpoint.name} is a text model and takes no images")
    with torch.device("meta"):
        encoder = VisionEncoder(checkpoint.vision)
    becomes = {each.name: each for way in vision_layouts(checkpoint.vision) for each in way}
    for name, tensor in checkpoint.weights.image_tensors():
        stored = becomes[name]
        for path, part in zip(stored.parameters, stored.parts(tensor), strict=True):
            owner, attribute = _set(encoder, path, part)
            if attribute == "weight":
                loaded(encoder, owner)
    return encoder.eval()


def _place(decoder: Decoder, stored: Stored, tensor: Tensor, loaded: Callable[[Decoder, str], None]) -> None:
    for path, part in zip(stored.parameters, stored.parts(tensor), strict=True):
        owner, attribute = _set(decoder, path, part)
        if attribute != "weight":
            continue
        if owner == "embed_tokens" and decoder.config.tie_word_embeddings:
            decoder.lm_head.weight = decoder.embed_tokens.weight
            loaded(decoder, "lm_head")
        loaded(decoder, owner)


def _set(model: torch.nn.Module, path: str, part: Tensor) -> tuple[str, str]:
    """Put a parameter into its place, which is returned: the module's path, and the attribute."""
    owner, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(_own(part), requires_grad=False))
    return owner, attribute


def _part(stored: Stored) -> str:
    """`layers.3.ffn_norm.weight` → `layers.3`; `lm_head.weight` → `lm_head`."""
    names = stored.parameters[0].split(".")
    return ".".join(names[:2] if names[0] == "layers" else names[:1])


def _own(tensor: Tensor) -> Tensor:
    """An fp32 copy: a stored tensor is a view of the mapped file, which the model must outlive."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

"""Does an artifact see what eager sees, and what does its image part's precision cost?

Question 1 asks its image part over many grids, and prompts with images, against the same quantized model. Question 2
asks the image part alone: the artifact, shown images as its own image part makes them, and as fp32's does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.evaluate.metrics import quantization_loss, relative_error, worst
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_vision_encoder
from lfm2_export.model.vision.encoder import VisionEncoder, vision_skeleton
from lfm2_export.model.vision.images import Image, encode
from lfm2_export.quantize.images import load_quantized_encoder
from lfm2_export.quantize.scheme import QuantizationRule
from lfm2_export.quantize.unpack import unpack_encoder
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

_EXACT_LIMIT = 1e-4  # of an image part whose products round no input
_ROUNDED_LIMIT = 0.03  # of one that rounds them: some fall the other way; measured 0.0054 on nano-vl
_BLOCKS = ((1, 1), (1, 7), (7, 1), (4, 4), (3, 5), (16, 16), (2, 24))  # rows and columns of embeddings
_PROMPTS = ((0,), (3, 4, 0), (4,), (0, 1, 2))  # which of them a prompt holds, as far as they fit the window
_BESIDE = 2  # tokens of text around each image
_AFTER = 8  # tokens of text that follow a prompt, whose logits question 2 compares as well
_SEED = 2026


class Seen(NamedTuple):
    """An image and its embeddings `[places, H]`: by the artifact's image part in eager, and by fp32's."""

    image: Image
    stored: np.ndarray
    exact: np.ndarray


@dataclass(frozen=True)
class ImageFigures:
    """How far an artifact is from eager, errors relative to eager's largest value; and its image part from fp32's."""

    images: int
    embeddings_error: float
    embeddings_limit: float
    prompts: int
    logits_error: float
    logits_limit: float
    kld: float  # mean, nats per token: what the image part's precision costs


def look(checkpoint: Checkpoint, rule: QuantizationRule | None) -> list[Seen]:
    """Return images of many grids as the image part under that rule sees them, and as fp32's does.

    Pixels are noise, as bright as a processor makes them. One image part is in memory at a time.
    """
    assert checkpoint.vision is not None
    images = list(_images(checkpoint.vision))
    stored = _embedded(as_stored(checkpoint, rule), images)
    exact = stored if rule is None else _embedded(load_vision_encoder(checkpoint), images)
    return [Seen(*each) for each in zip(images, stored, exact, strict=True)]


def as_stored(checkpoint: Checkpoint, rule: QuantizationRule | None) -> VisionEncoder:
    """Return the image part under that rule, in eager."""
    return unpack_encoder(load_quantized_encoder(checkpoint, rule))


@torch.inference_mode()
def compare_images(
    session: Session,
    seen: Sequence[Seen],
    vision: VisionConfig,
    decoder: Decoder,
    spoken: Sequence[int],
    rule: QuantizationRule | None,
    tolerance: float,
) -> ImageFigures:
    """Compare the image part on all images, and logits after prompts that hold some of them.

    `decoder` is what the artifact's was lowered from, `spoken` the text around images, `rule` the image part's, and
    `tolerance` the error that logits after text may have.
    """
    limit = _EXACT_LIMIT if rule is None or rule.activation is None else _ROUNDED_LIMIT
    found = [session.encode(image.patches.numpy(), image.rows, image.columns) for image, _, _ in seen]
    errors = [relative_error(ours, each.stored) for ours, each in zip(found, seen, strict=True)]
    after = list(spoken[:_AFTER])
    asked = {chosen: _prompt(vision, [len(found[number]) for number in chosen], spoken) for chosen in _PROMPTS}
    fitting = {chosen: tokens for chosen, tokens in asked.items() if len(tokens) + len(after) <= session.window}
    eager = EagerSession(decoder, max(map(len, fitting.values()), default=1), vision_skeleton(vision))
    logits: list[float] = []
    read: list[np.ndarray] = []
    exact: list[np.ndarray] = []
    for chosen, tokens in fitting.items():
        (theirs,) = _read(eager, tokens, [], [seen[number].stored for number in chosen])
        ours = _read(session, tokens, after, [found[number] for number in chosen])
        logits.append(relative_error(ours[0], theirs))
        read += ours
        exact += _read(session, tokens, after, [seen[number].exact for number in chosen])
    session.reset()
    following = np.array([*after, after[0]] * len(logits))
    kld = quantization_loss(np.stack(read), np.stack(exact), following).mean_kld
    allowed = max(limit, tolerance)
    return ImageFigures(len(seen), worst(errors), limit, len(logits), worst(logits), allowed, kld)


def _images(config: VisionConfig) -> Iterator[Image]:
    """Of a patch's frames, where it has several, all are the same, as a processor makes them of an image."""
    generator, merge = torch.Generator().manual_seed(_SEED), config.merge
    for rows, columns in _BLOCKS:
        rows, columns = rows * merge, columns * merge
        noise = torch.randn(rows * columns, config.patch_values, generator=generator)
        if config.frames > 1:
            frames = noise.unflatten(1, (-1, config.frames, config.patch_size**2))
            noise = frames[:, :, :1].expand_as(frames).flatten(1)
        yield Image(noise, rows, columns)


@torch.inference_mode()
def _embedded(encoder: VisionEncoder, images: Sequence[Image]) -> list[np.ndarray]:
    return [encode(encoder, [image]).numpy() for image in images]


def _prompt(config: VisionConfig, places: Sequence[int], spoken: Sequence[int]) -> list[int]:
    """Text, an image, text, …: text begins and ends."""
    image, tokens = config.image_token_id, list[int]()
    text = [token for token in spoken if token != image]
    for number, count in enumerate(places):
        tokens += [*text[number * _BESIDE : (number + 1) * _BESIDE], *[image] * count]
    return [*tokens, *text[-_BESIDE:]]


def _read(
    session: Session, tokens: Sequence[int], after: Sequence[int], images: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The logits after a prompt, and after each token that follows it."""
    session.reset()
    return [session.prefill_with_images(tokens, np.concatenate(images)), *map(session.decode, after)]

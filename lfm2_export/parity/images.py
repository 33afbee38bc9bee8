"""Does an artifact see what eager sees? Its image part over many grids, and prompts with images, against that model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lfm2_export.evaluate.metrics import relative_error, worst
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.model.vision.images import Image, encode
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

ENCODER_LIMIT = 1e-4  # the image part is in fp32
_BLOCKS = ((1, 1), (1, 7), (7, 1), (4, 4), (3, 5), (16, 16), (2, 24))  # rows and columns of embeddings
_PROMPTS = ((0,), (3, 4, 0), (4,), (0, 1, 2))  # which of them a prompt holds, as far as they fit the window
_BESIDE = 2  # tokens of text around each image
_SEED = 2026


@dataclass(frozen=True)
class ImageFigures:
    """How far an artifact is from eager. Errors are relative to eager's largest value."""

    images: int
    embeddings_error: float
    prompts: int
    logits_error: float
    limit: float  # of the logits


@torch.inference_mode()
def compare_images(
    session: Session, encoder: VisionEncoder, decoder: Decoder, spoken: Sequence[int], limit: float
) -> ImageFigures:
    """Compare the image part on images of many grids, and logits after prompts that hold some of them.

    `decoder` is what the artifact's was lowered from, `spoken` the text around images, `limit` the error that logits
    may have. Pixels are noise, as bright as a processor makes them.
    """
    images = list(_images(encoder))
    expected = [encode(encoder, [image]).numpy() for image in images]
    found = [session.encode(image.patches.numpy(), image.rows, image.columns) for image in images]
    errors = [relative_error(*both) for both in zip(found, expected, strict=True)]
    asked = {chosen: _prompt(encoder, [len(expected[number]) for number in chosen], spoken) for chosen in _PROMPTS}
    fitting = {chosen: tokens for chosen, tokens in asked.items() if len(tokens) <= session.window}
    eager, logits = EagerSession(decoder, max(map(len, fitting.values()), default=1), encoder), []
    for chosen, tokens in fitting.items():
        session.reset()
        ours = session.prefill_with_images(tokens, np.concatenate([found[number] for number in chosen]))
        eager.reset()
        theirs = eager.prefill_with_images(tokens, np.concatenate([expected[number] for number in chosen]))
        logits.append(relative_error(ours, theirs))
    session.reset()
    return ImageFigures(len(images), worst(errors), len(logits), worst(logits), limit)


def _images(encoder: VisionEncoder) -> Iterator[Image]:
    generator, merge = torch.Generator().manual_seed(_SEED), encoder.config.merge
    for rows, columns in _BLOCKS:
        rows, columns = rows * merge, columns * merge
        yield Image(torch.randn(rows * columns, encoder.config.patch_values, generator=generator), rows, columns)


def _prompt(encoder: VisionEncoder, places: Sequence[int], spoken: Sequence[int]) -> list[int]:
    """Text, an image, text, …: text begins and ends."""
    image, tokens = encoder.config.image_token_id, list[int]()
    text = [token for token in spoken if token != image]
    for number, count in enumerate(places):
        tokens += [*text[number * _BESIDE : (number + 1) * _BESIDE], *[image] * count]
    return [*tokens, *text[-_BESIDE:]]

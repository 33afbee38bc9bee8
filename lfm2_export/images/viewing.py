"""A picture as a session sees it: through the processor and the artifact's own image part, once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.images.pictures import ImageProcessor
from lfm2_export.images.processor import load_processor
from lfm2_export.runtimes.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """What takes a picture's place in the prompt, and what the image part made of it. Equal only to itself."""

    text: str
    embeddings: np.ndarray  # [places, H] float32
    seconds: float = 0.0  # that it took


class Tile(NamedTuple):
    """What the image part takes at once: a picture, or a part or thumbnail of one."""

    patches: np.ndarray  # [rows·columns, values] float32
    rows: int
    columns: int


class Viewer:
    """Shows pictures to one session."""

    def __init__(self, folder: Path, vision: VisionConfig, session: Session) -> None:
        """`folder` is the artifact's, whose config.json says `vision`. Nothing is read before the first picture."""
        self._folder, self._vision, self._session = folder, vision, session

    @cached_property
    def processor(self) -> ImageProcessor:
        """The folder's processor; see `load_processor`."""
        return load_processor(self._folder, self._vision)

    def prepare(self, image: Image, name: str) -> tuple[str, list[Tile]]:
        """Return what takes an RGB picture's place in the prompt, and its tiles.

        Raise what `load_processor` and `ImageProcessor.prepare` do; `name` is for errors.
        """
        from lfm2_export.model.vision.images import images_of  # torch

        pictures = self.processor.prepare([image], [name])
        found = images_of(self._vision, pictures.tensors)
        return pictures.texts[0], [Tile(tile.patches.numpy(), tile.rows, tile.columns) for tile in found]

    def look(self, image: Image, name: str) -> Picture:
        """Return an RGB picture as the session sees it; raises what `prepare` does."""
        _ = self.processor  # whose loading is not counted
        start = time.perf_counter()
        text, tiles = self.prepare(image, name)
        embeddings = np.concatenate([self._session.encode(*tile) for tile in tiles])
        return Picture(text, embeddings, time.perf_counter() - start)

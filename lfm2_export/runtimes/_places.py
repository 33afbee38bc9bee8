"""What a session of a vision-language artifact knows of images: which tokens stand for them, and what stands there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lfm2_export.errors import ArtifactError, UsageError
from lfm2_export.runtimes.session import Session

if TYPE_CHECKING:
    from lfm2_export.checkpoint.vision_config import VisionConfig


def vision_config(folder: Path) -> VisionConfig:
    """Return the image part's shape, from an artifact's `config.json`. Raises ArtifactError where that has none."""
    from lfm2_export.checkpoint.vision_config import read_model_config  # pydantic's models of it

    found = read_model_config(folder / "config.json").vision
    if found is None:
        raise ArtifactError(f"{folder / 'config.json'}: of a text model, the manifest's is one with images")
    return found


class Places(ABC):
    """The places of images in a prompt, which may be fed in several calls."""

    def __init__(self, token: int) -> None:
        """`token` stands for one embedding of an image."""
        self._token = token
        self._given: np.ndarray | None = None
        self._used = 0

    @abstractmethod
    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Return the embeddings `[places, H] float32` of one image."""

    def filled(self, ids: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """Put images into the embeddings `[1, T, H] float32` of `ids [1, T] int64`, where some were given; in place."""
        if self._given is not None:
            here = ids == self._token
            start, self._used = self._used, self._used + int(here.sum())
            embeddings[here] = self._given[start : self._used]
        return embeddings

    @contextmanager
    def standing_for(self, tokens: Sequence[int], images: np.ndarray) -> Iterator[None]:
        """Let the places of those tokens have the embeddings `images [places, H]` meanwhile, in their order.

        Raises UsageError for more or fewer places.
        """
        count = sum(token == self._token for token in tokens)
        if count != len(images):
            raise UsageError(
                f"the prompt has {count} places for image embeddings (token {self._token}), its images have "
                f"{len(images)}"
            )
        self._given, self._used = images, 0
        try:
            yield
        finally:
            self._given = None


class SeeingSession(Session):
    """A session of an artifact that may take images."""

    _images: Places | None  # None for a text model's

    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Ask the image part."""
        if self._images is None:
            return super().encode(patches, rows, columns)  # refuses
        return self._images.encode(patches, rows, columns)

    def prefill_with_images(self, tokens: Sequence[int], images: np.ndarray) -> np.ndarray:
        """Prefill, the images in their places."""
        if self._images is None:
            return super().prefill_with_images(tokens, images)  # refuses
        with self._images.standing_for(tokens, images):
            return self.prefill(tokens)

"""What stands before the decoder of a vision-language artifact in onnxruntime: the lookup, and the image part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.artifact.manifest import TOKEN_EMBEDDING, VISION_ENCODER, Manifest, MethodSpec
from lfm2_export.errors import ArtifactError, UsageError


class Images:
    """The embeddings of tokens, and of the images that some of them stand for."""

    def __init__(self, folder: Path, manifest: Manifest, opened: Callable[[MethodSpec], Any]) -> None:
        """`opened` loads a method's file. Raises ArtifactError where the folder's config is of no such model."""
        from lfm2_export.checkpoint.vision_config import read_model_config  # pydantic's models of it

        vision = read_model_config(folder / "config.json").vision
        if vision is None:
            raise ArtifactError(f"{folder / 'config.json'}: of a text model, the manifest's is one with images")
        self._token, self._by_mask = vision.image_token_id, vision.model_type == "lfm2_vl"
        methods = {method.name: method for method in manifest.methods}
        if TOKEN_EMBEDDING not in methods:
            raise ArtifactError(f"{folder}: takes images, but has no method {TOKEN_EMBEDDING}; export again")
        self._lookup, self._encoder = opened(methods[TOKEN_EMBEDDING]), opened(methods[VISION_ENCODER])
        self._given: np.ndarray | None = None

    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Return the embeddings `[places, H] float32` of one image."""
        if self._by_mask:
            given = {
                "pixel_values": patches[None],
                "pixel_attention_mask": np.ones((1, len(patches)), dtype=np.int64),
                "spatial_shapes": np.array([[rows, columns]], dtype=np.int64),
            }
        else:
            given = {"pixel_values": patches, "image_grid_thw": np.array([[1, rows, columns]], dtype=np.int64)}
        (found,) = self._encoder.run(None, given)
        return np.asarray(found)

    def embedded(self, ids: np.ndarray) -> np.ndarray:
        """Return the embeddings `[1, T, H] float32` of `ids [1, T] int64`."""
        (found,) = self._lookup.run(None, {"input_ids": ids})
        embeddings = np.array(found)
        if self._given is not None:
            embeddings[ids == self._token] = self._given
        return embeddings

    @contextmanager
    def standing_for(self, tokens: Sequence[int], images: np.ndarray) -> Iterator[None]:
        """Let the places of those tokens have the embeddings `images [places, H]` meanwhile.

        Raises UsageError for more or fewer places.
        """
        count = sum(token == self._token for token in tokens)
        if count != len(images):
            raise UsageError(
                f"the prompt has {count} places for image embeddings (token {self._token}), its images have "
                f"{len(images)}"
            )
        self._given = images
        try:
            yield
        finally:
            self._given = None

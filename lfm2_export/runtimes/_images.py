"""What stands before the decoder of a vision-language artifact in onnxruntime: the lookup, and the image part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.artifact.manifest import TOKEN_EMBEDDING, VISION_ENCODER, Manifest, MethodSpec
from lfm2_export.errors import ArtifactError
from lfm2_export.runtimes._places import Places, vision_config


class Images(Places):
    """The embeddings of tokens, and of the images that some of them stand for."""

    def __init__(self, folder: Path, manifest: Manifest, opened: Callable[[MethodSpec], Any]) -> None:
        """`opened` loads a method's file. Raises ArtifactError where the folder's config is of no such model."""
        vision = vision_config(folder)
        super().__init__(vision.image_token_id)
        self._by_mask = vision.model_type == "lfm2_vl"
        methods = {method.name: method for method in manifest.methods}
        if TOKEN_EMBEDDING not in methods:
            raise ArtifactError(f"{folder}: takes images, but has no method {TOKEN_EMBEDDING}; export again")
        self._lookup, self._encoder = opened(methods[TOKEN_EMBEDDING]), opened(methods[VISION_ENCODER])

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
        return self.filled(ids, np.array(found))

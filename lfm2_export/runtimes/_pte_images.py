"""What stands before the decoder of a vision-language `.pte`: the token embedding, and the image part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import TOKEN_LOOKUP, VISION_ENCODER, Manifest
from lfm2_export.errors import ArtifactError, UsageError
from lfm2_export.model.vision.images import Image, pixels
from lfm2_export.runtimes._places import Places, vision_config

Run = Callable[[str, list[Tensor]], list[Tensor]]  # (method, inputs) → outputs


class PteImages(Places):
    """The embeddings of tokens, and of the images that some of them stand for."""

    def __init__(self, folder: Path, manifest: Manifest, run: Run) -> None:
        """`run` calls a method. Raises ArtifactError where the folder's config is of no such model."""
        vision = vision_config(folder)
        super().__init__(vision.image_token_id)
        self._run, self._vision = run, vision
        methods = {method.name: method for method in manifest.methods}
        if TOKEN_LOOKUP not in methods:
            raise ArtifactError(f"{folder}: takes images, but has no method {TOKEN_LOOKUP}; export again")
        encoder = methods[VISION_ENCODER]
        self._whole = len(encoder.inputs) == 1  # it takes an image, not its patches and their grid
        self._most = encoder.max_tokens**2 if self._whole else encoder.max_tokens

    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Return the embeddings `[places, H] float32` of one image. UsageError where it is too large."""
        count = len(patches) // self._vision.merge**2
        if count > self._most:
            raise UsageError(
                f"an image of {rows} × {columns} patches has {count} embeddings; this artifact takes {self._most} at "
                f"most: export with --set options.image_tokens={count}"
            )
        if self._whole:
            given = [pixels(self._vision, Image(torch.from_numpy(patches), rows, columns))]
        else:
            given = [torch.from_numpy(np.ascontiguousarray(patches))[None], torch.tensor([[rows, columns]])]
        (embeddings,) = self._run(VISION_ENCODER, given)
        return embeddings[0].numpy().copy()

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """Return the embeddings `[1, T, H]` of the tokens of one call, in the program's memory."""
        ids = torch.tensor([list(tokens)])
        (embeddings,) = self._run(TOKEN_LOOKUP, [ids])
        self.filled(ids.numpy(), embeddings.numpy())
        return embeddings

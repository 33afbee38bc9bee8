"""LFM3-VL's pictures: resizing, normalization and patches are transformers', whose processor needs only Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_export.checkpoint.processor_keys import Lfm3VlProcessorKeys
from lfm2_export.checkpoint.shards import inside
from lfm2_export.errors import CheckpointError, one_line
from lfm2_export.extras import require
from lfm2_export.images.pictures import ImageProcessor, ImageToken, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image


class Lfm3VlPictures(ImageProcessor):
    """transformers' `Qwen2VLImageProcessorPil`, with the settings of one checkpoint."""

    def __init__(self, folder: Path, keys: Lfm3VlProcessorKeys, image_token_id: int) -> None:
        """Read the tokenizer of a checkpoint folder; `keys` are its processor's settings.

        Raise CheckpointError for one without the image token, MissingDependencyError without the extra.
        """
        require("transformers", "transformers", "vision", f"{folder}: reading images for it")
        from tokenizers import Tokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        path = inside(folder, "tokenizer.json")
        try:
            text = Tokenizer.from_file(str(path)).id_to_token(image_token_id)
        except Exception as error:  # the library's Rust code raises plain Exception
            raise CheckpointError(f"{path}: not a working tokenizer: {one_line(error)}") from error
        if not text:
            raise CheckpointError(f"{path}: has no token {image_token_id}, by which config.json means an image")
        settings = keys.model_dump(exclude={"min_pixels", "max_pixels"}) | {"size": keys.limits.model_dump()}
        self._processor: Any = Qwen2VLImageProcessorPil(**settings)
        self._merged = keys.merge_size**2
        self.token = ImageToken(image_token_id, text)
        self.most = keys.limits.longest_edge // (keys.patch_size * keys.merge_size) ** 2

    def _count(self, width: int, height: int) -> int:
        return int(self._processor.get_number_of_image_patches(height, width)) // self._merged

    def _prepared(self, images: list[Image]) -> Pictures:
        found = self._processor(images, return_tensors="pt")
        counts = found["image_grid_thw"].prod(1).tolist()
        texts = tuple(self.token.text * (count // self._merged) for count in counts)
        return Pictures({name: found[name] for name in ("pixel_values", "image_grid_thw")}, texts)

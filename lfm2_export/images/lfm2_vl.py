"""LFM2-VL's pictures: resizing, tiles, normalization, patches and the text of image tokens are transformers'.

What is ours is to check that a picture is not one whose patches would be beyond the model's, and that image tokens and
patches agree in number.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_export.checkpoint.processor_keys import Lfm2VlProcessorKeys
from lfm2_export.checkpoint.shards import inside
from lfm2_export.errors import CheckpointError, MissingDependencyError, one_line
from lfm2_export.extras import require
from lfm2_export.images.pictures import ImageProcessor, ImageToken, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = "<image>"
_TENSORS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class Lfm2VlPictures(ImageProcessor):
    """transformers' `Lfm2VlProcessor` of one checkpoint."""

    def __init__(self, folder: Path, keys: Lfm2VlProcessorKeys, image_token_id: int) -> None:
        """Read the tokenizer of a checkpoint folder; `keys` are its processor's settings.

        Raise CheckpointError for one that does not fit, MissingDependencyError without the extra.
        """
        for module in ("transformers", "torchvision"):
            require(module, module, "vision", f"{folder}: reading images for it")
        try:
            from transformers import PreTrainedTokenizerFast
            from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor
            from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor
        except (ImportError, RuntimeError) as error:
            raise MissingDependencyError(
                f"torchvision does not work beside this torch ({one_line(error, 80)}): take both from one place, as in "
                "pip install torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
            ) from error
        path = inside(folder, "tokenizer.json")
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # the library's Rust code raises plain Exception
            raise CheckpointError(f"{path}: not a working tokenizer: {one_line(error)}") from error
        if (found := tokenizer.convert_tokens_to_ids(IMAGE)) != image_token_id:
            raise CheckpointError(f"{path}: {IMAGE} is token {found}; config.json says {image_token_id}")
        self.token, self.most = ImageToken(image_token_id, IMAGE), keys.max_image_tokens
        self._keys = keys
        self._processor: Any = Lfm2VlProcessor(Lfm2VlImageProcessor(**keys.model_dump()), tokenizer)

    def _count(self, width: int, height: int) -> int:
        keys = self._keys
        wide, high = self._processor.image_processor.smart_resize(
            height,
            width,
            downsample_factor=keys.downsample_factor,
            min_image_tokens=keys.min_image_tokens,
            max_image_tokens=keys.max_image_tokens,
            encoder_patch_size=keys.encoder_patch_size,
        )
        return math.ceil(wide * high / (keys.encoder_patch_size * keys.downsample_factor) ** 2)

    def _prepared(self, images: list[Image]) -> Pictures:
        found = self._processor.image_processor(images, return_tensors="pt", return_row_col_info=True)
        texts = tuple(
            self._processor.replace_image_token(found, image_idx=index, use_image_special_tokens=True)
            for index in range(len(images))
        )
        patches, tokens = int(found["spatial_shapes"].prod(1).sum()), sum(text.count(IMAGE) for text in texts)
        if patches != tokens * self._keys.downsample_factor**2 or patches != int(found["pixel_attention_mask"].sum()):
            raise CheckpointError(
                f"the image processor made {patches} patches and {tokens} image tokens, unlike in number"
            )
        return Pictures({name: found[name] for name in _TENSORS}, texts)

"""Pictures → what a vision encoder takes and what stands for them in the prompt, by transformers' LFM2-VL processor.

Resizing, tiles, normalization, patches and the text of image tokens are the library's; what is ours is to check that
the checkpoint's settings fit its model, that a picture is not one whose patches would be beyond the model's, and that
places in the prompt, image tokens and patches agree in number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_export.checkpoint.processor_keys import ImageProcessorKeys, read_processor
from lfm2_export.checkpoint.shards import inside
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import CheckpointError, ImageError, MissingDependencyError, UsageError, one_line
from lfm2_export.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IMAGE = "<image>"  # what a chat template writes where an image belongs, and the text of each of its tokens


@dataclass(frozen=True)
class Pictures:
    """The pictures of one prompt. A picture is one tile, or several and a thumbnail.

    `pixel_values` is `[tiles, patches, patch_size² · 3]` float32, `pixel_attention_mask` `[tiles, patches]` int32 (0
    for padding), `spatial_shapes` `[tiles, 2]` int64 (rows and columns of patches). `texts` has, for each picture, what
    takes its place in the prompt.
    """

    pixel_values: Tensor
    pixel_attention_mask: Tensor
    spatial_shapes: Tensor
    texts: tuple[str, ...]


class ImageProcessor:
    """transformers' processor of one checkpoint."""

    def __init__(self, processor: Any, keys: ImageProcessorKeys) -> None:
        """`processor` is an `Lfm2VlProcessor` with the settings `keys`."""
        self._processor = processor
        self._keys = keys

    @classmethod
    def load(cls, folder: Path, vision: VisionConfig) -> ImageProcessor:
        """Read the processor of an LFM2-VL checkpoint folder, whose config.json says `vision`.

        Raise CheckpointError for settings that are wrong or do not fit, MissingDependencyError without the extra.
        """
        keys = read_processor(folder, vision)
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
        if (found := tokenizer.convert_tokens_to_ids(IMAGE)) != vision.image_token_id:
            raise CheckpointError(f"{path}: {IMAGE} is token {found}; config.json says {vision.image_token_id}")
        return cls(Lfm2VlProcessor(Lfm2VlImageProcessor(**keys.model_dump()), tokenizer), keys)

    def prepare(self, images: Sequence[Image]) -> Pictures:
        """Return what the vision encoder takes for RGB pictures, in their order.

        Raise ImageError for one so elongated that it would have more image tokens than the processor allows,
        CheckpointError where the processor's text and patches differ in number, UsageError without a picture.
        """
        if not images:
            raise UsageError("no image was given")
        for number, image in enumerate(images, start=1):
            self._check_size(image, number)
        found = self._processor.image_processor(list(images), return_tensors="pt", return_row_col_info=True)
        texts = tuple(
            self._processor.replace_image_token(found, image_idx=index, use_image_special_tokens=True)
            for index in range(len(images))
        )
        shapes = found["spatial_shapes"]
        patches, tokens = int(shapes.prod(1).sum()), sum(text.count(IMAGE) for text in texts)
        if patches != tokens * self._keys.downsample_factor**2 or patches != int(found["pixel_attention_mask"].sum()):
            raise CheckpointError(
                f"the image processor made {patches} patches and {tokens} image tokens, unlike in number"
            )
        return Pictures(found["pixel_values"], found["pixel_attention_mask"], shapes, texts)

    def _check_size(self, image: Image, number: int) -> None:
        keys = self._keys
        width, height = self._processor.image_processor.smart_resize(
            image.height,
            image.width,
            downsample_factor=keys.downsample_factor,
            min_image_tokens=keys.min_image_tokens,
            max_image_tokens=keys.max_image_tokens,
            encoder_patch_size=keys.encoder_patch_size,
        )
        tokens = math.ceil(width * height / (keys.encoder_patch_size * keys.downsample_factor) ** 2)
        if tokens > keys.max_image_tokens:
            raise ImageError(
                f"image {number} is too elongated ({image.width} × {image.height}): it would be {tokens} image tokens, "
                f"and the model's processor allows {keys.max_image_tokens}; crop it"
            )


def with_pictures(prompt: str, pictures: Pictures | None) -> str:
    """Return a rendered prompt with every `<image>` in it replaced by the text of the picture that belongs there.

    Raise UsageError where the prompt has more or fewer places than there are pictures.
    """
    texts = pictures.texts if pictures else ()
    first, *others = prompt.split(IMAGE)
    if len(others) != len(texts):
        raise UsageError(f"the prompt has places ({IMAGE}) for {len(others)} images, and {len(texts)} were given")
    return first + "".join(text + other for text, other in zip(texts, others, strict=True))

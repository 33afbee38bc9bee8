"""What a checkpoint's image processor is set to, with the values that each setting may have.

The keys and their defaults are those of transformers' `Lfm2VlImageProcessor`; keys that are not listed are ignored. The
settings stand in `processor_config.json` under `image_processor`, or in the older `preprocessor_config.json`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lfm2_export.checkpoint.config_keys import read_keys
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.shards import inside
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import CheckpointError

_NESTED, _OLDER = "processor_config.json", "preprocessor_config.json"
_MAX_BYTES = 1 << 20

Count = Annotated[int, Field(ge=1, le=4096)]
Tiles = Annotated[int, Field(ge=1, le=64)]
Number = Annotated[float, Field(gt=-1e6, lt=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
_HALF = (0.5, 0.5, 0.5)


class ImageProcessorKeys(BaseModel):
    """The settings of an LFM2-VL image processor that decide on its tensors."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    encoder_patch_size: Count = 16
    downsample_factor: Annotated[int, Field(ge=1, le=16)] = 2
    min_image_tokens: Count = 64
    max_image_tokens: Count = 256
    do_image_splitting: bool = True
    min_tiles: Tiles = 2
    max_tiles: Tiles = 10
    tile_size: Count = 512
    use_thumbnail: bool = True
    max_pixels_tolerance: Positive = 2.0
    resample: Literal[0, 1, 2, 3, 4, 5] = 2  # Pillow's numbers of its filters
    do_rescale: bool = True
    rescale_factor: Positive = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[Number, Number, Number] = _HALF
    image_std: tuple[Positive, Positive, Positive] = _HALF


def read_processor(folder: Path, vision: VisionConfig) -> ImageProcessorKeys:
    """Return the settings of the LFM2-VL image processor in a checkpoint folder.

    Raise CheckpointError, one line, where there are none, where one has no such value, or where they do not fit the
    model's tower and projector.
    """
    if vision.model_type != "lfm2_vl":
        raise CheckpointError(f"{folder}: images are read for LFM2-VL only; this is {vision.model_type}")
    patch_size = math.isqrt(vision.patch_values // 3)
    where, document = _settings(folder)
    keys = read_keys(ImageProcessorKeys, {key: value for key, value in document.items() if value is not None}, where)
    for name, found, expected in (
        ("encoder_patch_size", keys.encoder_patch_size, patch_size),
        ("downsample_factor", keys.downsample_factor, vision.merge),
    ):
        if found != expected:
            raise CheckpointError(f"{where}: {name} is {found}; the model's config.json says {expected}")
    if keys.min_image_tokens > keys.max_image_tokens or keys.min_tiles > keys.max_tiles:
        raise CheckpointError(f"{where}: min_image_tokens or min_tiles is above its maximum")
    if keys.do_image_splitting and keys.tile_size % (side := patch_size * vision.merge):
        raise CheckpointError(f"{where}: tile_size is {keys.tile_size}; expected a multiple of {side}")
    return keys


def _settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The settings, and where they stand; in the order in which transformers looks for them."""
    if (folder / _NESTED).is_file():
        path = inside(folder, _NESTED)
        nested = read_json(path, _MAX_BYTES).get("image_processor")
        if isinstance(nested, dict):
            return f"{path}: image_processor", nested
    if not (folder / _OLDER).is_file():
        raise CheckpointError(f"{folder}: neither {_NESTED} nor {_OLDER} has an image processor; images cannot be read")
    path = inside(folder, _OLDER)
    return str(path), read_json(path, _MAX_BYTES)

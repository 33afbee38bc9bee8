"""What a checkpoint's image processor is set to, with the values that each setting may have.

The keys and their defaults are those of transformers' `Lfm2VlImageProcessor`, and of the `Qwen2VLImageProcessor` that
LFM3-VL has; keys that are not listed are ignored. The settings stand in `processor_config.json` under
`image_processor`, or in the older `preprocessor_config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lfm2_export.checkpoint.config_keys import read_keys
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.shards import inside
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import CheckpointError

NESTED, OLDER = "processor_config.json", "preprocessor_config.json"
_MAX_BYTES = 1 << 20

Count = Annotated[int, Field(ge=1, le=4096)]
Small = Annotated[int, Field(ge=1, le=16)]
Pixels = Annotated[int, Field(ge=1, le=1 << 26)]
Tiles = Annotated[int, Field(ge=1, le=64)]
Number = Annotated[float, Field(gt=-1e6, lt=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
_HALF = (0.5, 0.5, 0.5)


class Lfm2VlProcessorKeys(BaseModel):
    """The settings of an LFM2-VL image processor that decide on its tensors."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    encoder_patch_size: Count = 16
    downsample_factor: Small = 2
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


class PixelLimits(BaseModel):
    """The fewest and the most pixels that an image is resized to."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    shortest_edge: Pixels = 56 * 56
    longest_edge: Pixels = 28 * 28 * 1280


class Lfm3VlProcessorKeys(BaseModel):
    """The settings of an LFM3-VL image processor that decide on its tensors."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    patch_size: Count = 14
    temporal_patch_size: Small = 2
    merge_size: Small = 2
    size: PixelLimits = PixelLimits()
    min_pixels: Pixels | None = None  # older spellings of `size`
    max_pixels: Pixels | None = None
    do_resize: Literal[True] = True
    resample: Literal[0, 1, 2, 3, 4, 5] = 3
    do_rescale: bool = True
    rescale_factor: Positive = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[Number, Number, Number] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Positive, Positive, Positive] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def limits(self) -> PixelLimits:
        """The fewest and the most pixels, however they are spelled."""
        least, most = self.min_pixels or self.size.shortest_edge, self.max_pixels or self.size.longest_edge
        return PixelLimits(shortest_edge=least, longest_edge=most)


def has_processor(folder: Path) -> bool:
    """Return whether a checkpoint folder says how images are prepared for it."""
    return any((folder / name).is_file() for name in (NESTED, OLDER))


def read_processor(folder: Path, vision: VisionConfig) -> Lfm2VlProcessorKeys | Lfm3VlProcessorKeys:
    """Return the settings of the image processor in a checkpoint folder.

    Raise CheckpointError, one line, where there are none, where one has no such value, or where they do not fit the
    model's tower and projector.
    """
    where, document = _settings(folder)
    return parse_processor(document, where, vision)


def parse_processor(
    document: dict[str, Any], where: str, vision: VisionConfig
) -> Lfm2VlProcessorKeys | Lfm3VlProcessorKeys:
    """Return the settings in a parsed object of them; `where` names it in errors. Raise CheckpointError."""
    given = {key: value for key, value in document.items() if value is not None}
    return _lfm2_vl(given, where, vision) if vision.model_type == "lfm2_vl" else _lfm3_vl(given, where, vision)


def _lfm2_vl(document: dict[str, Any], where: str, vision: VisionConfig) -> Lfm2VlProcessorKeys:
    keys = read_keys(Lfm2VlProcessorKeys, document, where)
    _check_fit(keys, where, encoder_patch_size=vision.patch_size, downsample_factor=vision.merge)
    if keys.min_image_tokens > keys.max_image_tokens or keys.min_tiles > keys.max_tiles:
        raise CheckpointError(f"{where}: min_image_tokens or min_tiles is above its maximum")
    if keys.do_image_splitting and keys.tile_size % (side := vision.patch_size * vision.merge):
        raise CheckpointError(f"{where}: tile_size is {keys.tile_size}; expected a multiple of {side}")
    return keys


def _lfm3_vl(document: dict[str, Any], where: str, vision: VisionConfig) -> Lfm3VlProcessorKeys:
    keys = read_keys(Lfm3VlProcessorKeys, document, where)
    _check_fit(keys, where, patch_size=vision.patch_size, temporal_patch_size=vision.frames, merge_size=vision.merge)
    if keys.limits.shortest_edge > keys.limits.longest_edge:
        raise CheckpointError(f"{where}: size: the fewest pixels are more than the most")
    return keys


def _check_fit(keys: BaseModel, where: str, **expected: int) -> None:
    for name, value in expected.items():
        if (found := getattr(keys, name)) != value:
            raise CheckpointError(f"{where}: {name} is {found}; the model's config.json says {value}")


def _settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The settings, and where they stand; in the order in which transformers looks for them."""
    if (folder / NESTED).is_file():
        path = inside(folder, NESTED)
        nested = read_json(path, _MAX_BYTES).get("image_processor")
        if isinstance(nested, dict):
            return f"{path}: image_processor", nested
    if not (folder / OLDER).is_file():
        raise CheckpointError(f"{folder}: neither {NESTED} nor {OLDER} has an image processor; images cannot be read")
    path = inside(folder, OLDER)
    return str(path), read_json(path, _MAX_BYTES)

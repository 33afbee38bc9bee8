"""What a processor makes of images, one image at a time, and how their embeddings come into a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.errors import UsageError
from lfm2_export.model.vision.encoder import VisionEncoder

_LFM2_KEYS, _LFM3_KEYS = ("pixel_values", "spatial_shapes", "pixel_attention_mask"), ("pixel_values", "image_grid_thw")


class Image(NamedTuple):
    """The patches of one image, a tile or a thumbnail, `[rows·columns, values] fp32`, without padding."""

    patches: Tensor
    rows: int
    columns: int


def images_of(config: VisionConfig, processed: Mapping[str, Tensor]) -> list[Image]:
    """Return the images that transformers' processor for that family made, in the order of their places in the prompt.

    Raises UsageError, one line, for video, and for what no processor of this model makes: keys that are missing,
    patches of another size, a grid that they do not fill or that does not divide.
    """
    if any(name.endswith("_videos") for name in processed):
        raise UsageError("video is not supported; give some of its frames as images")
    wanted = _LFM2_KEYS if config.model_type == "lfm2_vl" else _LFM3_KEYS
    if missing := [name for name in wanted if name not in processed]:
        raise UsageError(f"the processor gave no {missing[0]}; expected {', '.join(wanted)} of a {config.model_type}")
    apart = _padded if config.model_type == "lfm2_vl" else _behind_one_another
    return [_checked(config, image) for image in apart(processed)]


def pixels(config: VisionConfig, image: Image) -> Tensor:
    """Return the image `[1, 3, height, width]` that was cut into those patches."""
    side, merge, (patches, rows, columns) = config.patch_size, config.merge, image
    if config.model_type == "lfm2_vl":
        apart = patches.reshape(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
    else:  # whose frames are all the same
        by_block = patches.reshape(rows // merge, columns // merge, merge, merge, -1, config.frames, side, side)
        apart = by_block[:, :, :, :, :, 0].permute(4, 0, 2, 5, 1, 3, 6)
    return apart.reshape(1, -1, rows * side, columns * side)


def encode(encoder: VisionEncoder, images: Iterable[Image]) -> Tensor:
    """Return the embeddings of all images, one after the other, `[places, H]`."""
    found = [encoder(image.patches.unsqueeze(0), torch.tensor([[image.rows, image.columns]]))[0] for image in images]
    return torch.cat(found) if found else torch.zeros(0, encoder.config.output_size)


def with_images(config: VisionConfig, tokens: Tensor, embeddings: Tensor, images: Tensor) -> Tensor:
    """Put `images [places, H]` in the place of the `embeddings [B, T, H]` whose `tokens [B, T]` stand for an image.

    Raises UsageError when there are more or fewer places.
    """
    places = tokens == config.image_token_id
    if (count := int(places.sum())) != len(images):
        raise UsageError(
            f"the prompt has {count} places for image embeddings (token {config.image_token_id}), its images have "
            f"{len(images)}"
        )
    return embeddings.masked_scatter(places.unsqueeze(-1), images)


def _padded(processed: Mapping[str, Tensor]) -> list[Image]:
    """LFM2-VL's: a row each, of which the mask counts the patches."""
    counts = processed["pixel_attention_mask"].sum(-1).tolist()
    grids = processed["spatial_shapes"].tolist()
    rows = zip(processed["pixel_values"], counts, grids, strict=True)
    return [Image(patches[:count], *grid) for patches, count, grid in rows]


def _behind_one_another(processed: Mapping[str, Tensor]) -> list[Image]:
    """LFM3-VL's: patches of all images in one row, of which the grids count them."""
    grids: list[list[int]] = processed["image_grid_thw"].tolist()
    if any(frames != 1 for frames, _, _ in grids):
        raise UsageError("video is not supported; give some of its frames as images")
    patches, counts = processed["pixel_values"], [rows * columns for _, rows, columns in grids]
    if sum(counts) != len(patches):
        raise UsageError(f"the processor gave {len(patches)} patches; its grids hold {sum(counts)}")
    return [Image(each, *grid[1:]) for each, grid in zip(patches.split(counts), grids, strict=True)]


def _checked(config: VisionConfig, image: Image) -> Image:
    count, values = image.patches.shape
    if values != config.patch_values:
        raise UsageError(f"a patch has {values} values; the model takes {config.patch_values}: another patch_size?")
    if count != image.rows * image.columns:
        raise UsageError(f"an image has {count} patches, which do not fill its grid of {image.rows} × {image.columns}")
    if not count or image.rows % config.merge or image.columns % config.merge:
        raise UsageError(
            f"an image has a grid of {image.rows} × {image.columns} patches; expected multiples of {config.merge}"
        )
    return image

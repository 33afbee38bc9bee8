"""Which processor a checkpoint's pictures go through."""

from __future__ import annotations

from pathlib import Path

from lfm2_export.checkpoint.processor_keys import Lfm2VlProcessorKeys, read_processor
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.images.lfm2_vl import Lfm2VlPictures
from lfm2_export.images.lfm3_vl import Lfm3VlPictures
from lfm2_export.images.pictures import ImageProcessor


def load_processor(folder: Path, vision: VisionConfig) -> ImageProcessor:
    """Read the image processor of a checkpoint or artifact folder, whose config.json says `vision`.

    Raise CheckpointError for settings that are wrong or do not fit, MissingDependencyError without the extra.
    """
    keys = read_processor(folder, vision)
    if isinstance(keys, Lfm2VlProcessorKeys):
        return Lfm2VlPictures(folder, keys, vision.image_token_id)
    return Lfm3VlPictures(folder, keys, vision.image_token_id)

"""Opens a picture that nobody vouches for: few formats, Pillow's limit on pixels, every failure in one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lfm2_export.errors import ImageError, one_line
from lfm2_export.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of all that Pillow reads, what cameras, browsers and painters write


def open_image(path: Path) -> Image:
    """Return a picture in RGB, upright, on white where it is transparent; of an animation the first frame.

    Raise ImageError for a file that cannot be read, is not of `FORMATS`, is damaged, or has more pixels than Pillow's
    limit (about 89 million); MissingDependencyError without Pillow.
    """
    require("PIL", "pillow", "vision", f"{path}: reading it")
    import PIL.Image

    if not path.is_file():
        raise ImageError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow only warns up to twice its limit
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=FORMATS) as image:
                return _rgb(image)
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture; expected one of {', '.join(FORMATS)}") from error
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: more than {PIL.Image.MAX_IMAGE_PIXELS} pixels; make it smaller first") from error
    except Exception as error:  # Pillow's readers raise from many families, by what is damaged
        raise ImageError(f"{path}: a damaged picture: {one_line(error)}") from error


def _rgb(image: Image) -> Image:
    import PIL.Image
    from PIL.ImageOps import exif_transpose

    upright = exif_transpose(image)  # loads it, too
    if upright.mode.startswith("I"):  # Pillow would cut 16 bits off above 255
        return PIL.Image.fromarray((np.asarray(upright).clip(0, 0xFFFF) // 0x101).astype(np.uint8)).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    ground = PIL.Image.new("RGBA", upright.size, "white")
    return PIL.Image.alpha_composite(ground, upright.convert("RGBA")).convert("RGB")

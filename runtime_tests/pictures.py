"""Pictures of real pages for README and docs: looked at by tests, and kept by `make pictures`."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

_KEPT = os.environ.get("LFM2_PICTURES")  # the folder that `make pictures` keeps them in
BEING_KEPT = bool(_KEPT)
_MOST_BYTES = 150_000


def taken(shot: Path, name: str, height: int) -> Image.Image:
    """The upper part of a screenshot, found to show something; in 128 colours kept as `name`, if that is asked for."""
    whole = Image.open(shot).convert("RGB")
    picture = whole.crop((0, 0, whole.width, min(height, whole.height)))
    colors = sorted(picture.getcolors(1 << 24), reverse=True)
    assert len(colors) > 100  # letters have soft edges
    assert colors[0][0] < 0.97 * picture.width * picture.height  # nearly empty
    small = shot.with_name(name)
    picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, optimize=True)
    assert small.stat().st_size < _MOST_BYTES
    if _KEPT:
        (Path(_KEPT) / name).write_bytes(small.read_bytes())
    return picture

"""Pictures from anybody, as real files: read as they are meant, or refused in one line."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lfm2_export import extras
from lfm2_export.checkpoint.processor_keys import Lfm2VlProcessorKeys
from lfm2_export.errors import CheckpointError, ImageError, Lfm2ExportError, MissingDependencyError
from lfm2_export.images.lfm2_vl import Lfm2VlPictures
from lfm2_export.images.opening import open_image

RED, BLUE = (220, 30, 35), (35, 70, 215)


def striped(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """The header of a PNG of that size, with a dozen bytes of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(12))) + chunk(b"IEND", b"")


def rotated(quarter: int) -> bytes:
    """The stripes as a camera held sideways stores them: turned, with a note of how."""
    exif = Image.Exif()
    exif[0x0112] = quarter
    turn = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[quarter]
    return encoded(striped().transpose(turn), "JPEG", exif=exif, quality=95)


def palette_with_alpha() -> bytes:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((0, 0), 1)
    return encoded(image, "PNG", transparency=bytes([255, 0]))


def colors(path: Path) -> list[tuple[int, ...]]:
    """The colors left, right, of the picture that is read, and its size."""
    image = open_image(path)
    assert image.mode == "RGB"
    return [image.getpixel((1, 1)), image.getpixel((image.width - 2, image.height - 2)), image.size]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes, str], Path]:
    def written(content: bytes, name: str = "picture.png") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return written


GOOD = {
    "png": encoded(striped(), "PNG"),
    "jpeg": encoded(striped(), "JPEG", quality=95),
    "webp": encoded(striped(), "WEBP", lossless=True),
    "bmp": encoded(striped(), "BMP"),
    "gif": encoded(striped(), "GIF"),
    "animated gif": encoded(striped(), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 20), "green")]),
    "cmyk": encoded(striped("CMYK"), "JPEG", quality=95),
    "transparent": encoded(striped("RGBA"), "PNG"),
    "turned right": rotated(6),
    "turned left": rotated(8),
    "broad": encoded(striped(size=(30000, 4)), "PNG"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_picture_is_read_upright_and_in_rgb(kind, write):
    left, right, size = colors(write(GOOD[kind]))
    assert size == ((30000, 4) if kind == "broad" else (40, 20))
    assert np.abs(np.subtract(left, RED)).max() < 12
    assert np.abs(np.subtract(right, BLUE)).max() < 12


def test_what_is_transparent_is_white(write):
    assert open_image(write(palette_with_alpha())).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(write(palette_with_alpha())).getpixel((1, 0)) == RED
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert open_image(write(encoded(half, "PNG"))).getpixel((0, 0)) == (127, 127, 127)


def test_sixteen_bits_become_eight(write):
    deep = Image.fromarray(np.array([[0, 0x8080, 0xFFFF]], dtype=np.uint16))
    image = open_image(write(encoded(deep, "PNG")))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_one_pixel_is_a_picture(write):
    assert open_image(write(encoded(Image.new("L", (1, 1), 7), "PNG"))).getpixel((0, 0)) == (7, 7, 7)


BAD = {
    "empty": (b"", "not a picture"),
    "text": (b"no picture at all", "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
    "tiff": (encoded(striped(), "TIFF"), "not a picture"),
    "truncated png": (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1500], "damaged"),
    "truncated jpeg": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:700], "damaged"),
    "bomb": (png_that_claims(60000, 60000), "pixels; make it smaller"),
    "small bomb": (png_that_claims(10000, 9000), "pixels; make it smaller"),
    "no pixels": (png_that_claims(0, 5), "picture"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_hostile_picture_is_refused_in_one_line(kind, write):
    content, says = BAD[kind]
    path = write(content)
    with pytest.raises(ImageError, match=says) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ImageError, match="not a file"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "missing.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "turned left"])
def test_any_damage_gives_a_picture_or_one_line(kind, write):
    rng = random.Random(kind)
    said = []
    for _ in range(60):
        content = bytearray(GOOD[kind])
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            open_image(write(bytes(content)))
        except ImageError as error:
            said.append(str(error))
    assert [line for line in said if "\n" in line] == []


def test_without_pillow_the_extra_is_named(write, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lfm2-export\[vision\]'"):
        open_image(write(GOOD["png"]))
    assert issubclass(MissingDependencyError, Lfm2ExportError)


class Miscounting:
    """A processor that makes four patches, and text for so many image tokens."""

    def __init__(self, tokens: int, masked: int = 4) -> None:
        self.tokens, self.masked = tokens, masked

    def image_processor(self, images: list[Image.Image], **_: object) -> dict[str, torch.Tensor]:
        mask = torch.tensor([[1] * self.masked + [0] * (4 - self.masked)])
        shapes = torch.tensor([[2, 2]])
        return {"pixel_values": torch.zeros(1, 4, 768), "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def replace_image_token(self, found: object, **_: object) -> str:
        return "<image>" * self.tokens


def test_image_tokens_must_be_as_many_as_the_patches_make():
    processor = object.__new__(Lfm2VlPictures)
    processor._keys = Lfm2VlProcessorKeys()
    processor._processor = Miscounting(tokens=1)
    assert processor._prepared([striped()]).texts == ("<image>",)
    for wrong in (Miscounting(tokens=2), Miscounting(tokens=0), Miscounting(tokens=1, masked=3)):
        processor._processor = wrong
        with pytest.raises(CheckpointError, match=r"made 4 patches and \d image tokens, unlike in number"):
            processor._prepared([striped()])

"""What LFM2-VL's processor makes of drawn pictures: they have sizes that it leaves alone, so patches are only cut."""

import numpy as np

PATCH, FOLD = 16, 2  # pixels of a patch in each direction, and patches that become one image token
IMAGE, IMAGE_START, IMAGE_END = "<image>", "<|image_start|>", "<|image_end|>"


def text_of(rows: int, columns: int) -> str:
    """Return what stands in the prompt for a picture of so many cells, each an image token."""
    return IMAGE_START + IMAGE * (rows * columns) + IMAGE_END


def patches(pictures: np.ndarray) -> np.ndarray:
    """Return the patches of pictures `[B, height, width, 3] uint8`, `[B, rows·columns, values] float32`."""
    count, height, width, colors = pictures.shape
    rows, columns = height // PATCH, width // PATCH
    cut = pictures.reshape(count, rows, PATCH, columns, PATCH, colors).transpose(0, 1, 3, 2, 4, 5)
    return (cut.reshape(count, rows * columns, -1).astype(np.float32) - 127.5) / 127.5

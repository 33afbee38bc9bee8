"""Pictures on their way to a model: what its processor makes of them, and what stands for them in the prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lfm2_export.errors import ImageError, UsageError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class ImageToken(NamedTuple):
    """What a prompt holds once for each embedding of an image; a chat template writes it once for an image."""

    id: int
    text: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of one prompt. A picture is one tile, or several and a thumbnail.

    `tensors` are what the family's processor returns: for LFM2-VL `pixel_values` `[tiles, patches, values]` float32,
    `pixel_attention_mask` `[tiles, patches]` int32 (0 for padding) and `spatial_shapes` `[tiles, 2]` int64 (rows and
    columns of patches); for LFM3-VL `pixel_values` `[patches, values]` float32 of all pictures and `image_grid_thw`
    `[pictures, 3]` int64. `texts` has, for each picture, what takes its place in the prompt.
    """

    tensors: dict[str, Tensor]
    texts: tuple[str, ...]


class ImageProcessor(ABC):
    """transformers' processor of one checkpoint."""

    token: ImageToken
    most: int  # image tokens of a picture, or of its thumbnail

    def prepare(self, images: Sequence[Image], names: Sequence[str] = ()) -> Pictures:
        """Return what the vision encoder takes for RGB pictures, in their order; `names` are for errors.

        Raise ImageError for one so elongated that it would have more image tokens than the processor allows,
        CheckpointError where the processor's text and patches differ in number, UsageError without a picture.
        """
        if not images:
            raise UsageError("no image was given")
        for image, name in zip(images, names or [f"image {number + 1}" for number in range(len(images))], strict=True):
            self._check_size(image, name)
        return self._prepared(list(images))

    def _check_size(self, image: Image, name: str) -> None:
        elongated = f"{name} is too elongated ({image.width} × {image.height})"
        try:
            tokens = self._count(image.width, image.height)
        except ValueError as error:  # what the library says of a ratio that it does not take
            raise ImageError(f"{elongated}: {one_line(error)}; crop it") from error
        if tokens > self.most:
            raise ImageError(
                f"{elongated}: it would be {tokens} image tokens, and the model's processor allows {self.most}; crop it"
            )

    @abstractmethod
    def _count(self, width: int, height: int) -> int:
        """The image tokens of a picture of that size that is not cut into tiles."""

    @abstractmethod
    def _prepared(self, images: list[Image]) -> Pictures:
        """What `prepare` returns for pictures of possible sizes."""


def with_pictures(prompt: str, texts: Sequence[str], placeholder: str) -> str:
    """Return a rendered prompt with every placeholder replaced by the text of the picture that belongs there.

    Raise UsageError where the prompt has more or fewer places than there are pictures.
    """
    first, *others = prompt.split(placeholder)
    if len(others) != len(texts):
        raise UsageError(f"the prompt has places ({placeholder}) for {len(others)} images, and {len(texts)} were given")
    return first + "".join(text + other for text, other in zip(texts, others, strict=True))

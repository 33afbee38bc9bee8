"""The image part as a `.pte`'s method equals the traced one, whatever the grid: from patches, and from an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from executorch.extension.pybindings import portable_lib
from torch import Tensor, nn
from vision_checkpoints import FAMILIES, GRIDS, SHAPES, ours_of, processed, vision_model
from xnnpack_artifacts import recipe

from lfm2_export.graph.trace import trace_vision
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.model.vision.images import Image, encode, images_of, pixels
from lfm2_export.progress import silent
from lfm2_export.quantize.apply import quantize_module
from lfm2_export.quantize.images import image_rules
from lfm2_export.quantize.scheme import Precision
from lfm2_export.quantize.unpack import unpack_encoder
from lfm2_export.targets.xnnpack import methods, target
from lfm2_export.targets.xnnpack.capabilities import CAPABILITIES
from lfm2_export.targets.xnnpack.table import TABLE, Delegated, Hosted
from lfm2_export.targets.xnnpack.vision import prepared_images
from lfm2_export.targets.xnnpack.weights import Weights

ERROR = 1e-5  # of the largest value
FLIP_ERROR = 0.03  # measured up to 0.0064
MOST = 256  # embeddings of an image


class Pair:
    """A model of transformers', ours in a precision, and the loaded method."""

    def __init__(
        self,
        folder: Path,
        family: str,
        changes: dict[str, Any],
        form: Literal["explicit", "resident"] = "explicit",
        precision: Precision = "fp32",
    ) -> None:
        self.theirs, self.family, self.form = vision_model(family, **changes), family, form
        self.ours = ours_of(self.theirs)
        for path, rule in image_rules(self.ours.config, CAPABILITIES.vision[precision]).items():
            quantize_module(self.ours, path, rule)
        made = methods.image_encoder if form == "resident" else methods.patch_encoder
        method = (made(self.ours, MOST, Weights()) for _ in "1")
        lowered = target._lower(method, recipe(form=form), folder, silent, None)
        (self.spec,) = lowered.methods
        self.path = folder / methods.FILE
        self.module = portable_lib._load_for_executorch(str(self.path))

    def call(self, image: Image) -> Tensor:
        given: tuple[Tensor, ...] = (image.patches[None], torch.tensor([[image.rows, image.columns]]))
        if self.form == "resident":
            given = (self.whole(image),)
        (found,) = self.module.run_method(self.spec.name, given)
        return found[0]

    def whole(self, image: Image) -> Tensor:
        """The image that those patches were cut from, `[1, 3, height, width]`, pixel by pixel."""
        config = self.ours.config
        side, merge = config.patch_size, config.merge
        pixels = torch.empty(3, image.rows * side, image.columns * side)
        for number, patch in enumerate(image.patches):
            if self.family == "lfm2_vl":
                row, column = divmod(number, image.columns)
                here = patch.reshape(side, side, 3).permute(2, 0, 1)
            else:
                block, within = divmod(number, merge**2)
                down, across = divmod(block, image.columns // merge)
                row, column = down * merge + within // merge, across * merge + within % merge
                here = patch.reshape(3, config.frames, side, side)[:, 0]
            pixels[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = here
        return pixels[None]

    def images(self, *grids: tuple[int, int]) -> list[Image]:
        return images_of(self.ours.config, processed(self.family, self.theirs.config, grids))

    def error(self, image: Image, other: VisionEncoder | None = None) -> float:
        expected = encode(other or self.ours, [image])
        found = self.call(image)
        assert found.shape == expected.shape
        return float((found - expected).abs().max() / expected.abs().max())


KINDS = {name: (*shape, "explicit") for name, shape in SHAPES.items()} | {
    f"{name}, from an image": (*SHAPES[name], "resident") for name in ("lfm2_vl", "lfm3_vl")
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("vision"), *request.param)


def one_frame(pair: Pair, image: Image) -> Image:
    """What a processor makes of an image: of a patch's frames all are the same."""
    apart = image.patches.unflatten(1, (3, pair.ours.config.frames, -1))
    return image._replace(patches=apart[:, :, :1].expand_as(apart).flatten(1))


@torch.inference_mode()
def test_it_equals_the_traced_image_part(pair: Pair) -> None:
    """One program for all: grids come in any order."""
    grids = [grid for name in GRIDS for grid in GRIDS[name]]
    images = pair.images(*grids)
    if (pair.family, pair.form) == ("lfm3_vl", "resident"):  # an image has no second frame
        images = [one_frame(pair, image) for image in images]
    assert max(map(pair.error, images)) < ERROR


@torch.inference_mode()
def test_an_image_is_put_together_from_its_patches(pair: Pair) -> None:
    (image,) = pair.images((2, 3))
    assert torch.equal(pixels(pair.ours.config, image), pair.whole(image))


@pytest.mark.parametrize("precision", [each for each in CAPABILITIES.vision if each != "fp32"])
@torch.inference_mode()
def test_every_precision_is_the_same_arithmetic_in_eager(precision: Precision, tmp_path: Path) -> None:
    """As close as in fp32, but for a rounded input that falls the other way; and not merely something like it."""
    pair = Pair(tmp_path, "lfm2_vl", {}, precision=precision)
    unpack_encoder(pair.ours)
    images, exact = pair.images((1, 1), (3, 5), (16, 16), (1, 40), (7, 2)), ours_of(pair.theirs)
    errors = [pair.error(image) for image in images]
    assert np.median(errors) < ERROR
    assert max(errors) < (FLIP_ERROR if precision == "int8-token" else ERROR)
    assert min(pair.error(image, exact) for image in images) > 10 * ERROR
    program = pair.path.read_bytes()
    matrices = [module.weight for module in exact.modules() if isinstance(module, nn.Linear)]
    assert not any(weight.numpy().tobytes() in program for weight in matrices)


def test_only_convolutions_interrupt_the_delegate(pair: Pair) -> None:
    assert pair.spec.delegation is not None
    convolutions = sum(step.kind == "grid_conv" for step in trace_vision(pair.ours.config).steps)
    assert pair.spec.delegation.calls == 1 + convolutions


@torch.inference_mode()
def test_an_image_that_is_too_large_is_an_error(pair: Pair) -> None:
    merge = pair.ours.config.merge
    rows, columns = merge, (MOST + 1) * merge
    image = Image(torch.zeros(rows * columns, pair.ours.config.patch_values), rows, columns)
    with pytest.raises(RuntimeError):
        pair.call(image)


@torch.inference_mode()
def test_a_grid_that_the_patches_do_not_fill_is_an_error_or_without_harm(pair: Pair) -> None:
    """A grid is only numbers: one that points outside must not read there."""
    if pair.form == "resident":  # an image is its own grid: there is no number to be wrong
        assert [spec.name for spec in pair.spec.inputs] == ["image"]
        return
    merge, values = pair.ours.config.merge, pair.ours.config.patch_values
    image = Image(torch.zeros(4 * merge**2, values), 3 * merge, 10 * merge)
    looks_up = pair.family == "lfm2_vl" or any(trace_vision(pair.ours.config).of_kind("grid_conv"))
    if merge == 1 or not looks_up:  # patches lie in their order already
        assert pair.call(image).isfinite().all()
        return
    with pytest.raises(RuntimeError):
        pair.call(image)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_written(family: str) -> None:
    network = prepared_images(ours_of(vision_model(family)).config)
    assert {type(TABLE[step.kind]) for step in network.steps} <= {Delegated, Hosted}


def test_what_is_altered_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path, "lfm2_vl", {})
    (image,) = pair.images((3, 5))
    with torch.inference_mode():
        pair.ours.vision_tower.layers[1].mlp.fc1.weight[3, 5] += 1.0
        assert pair.error(image) > 10 * ERROR
    assert np.isfinite(pair.call(image)).all()

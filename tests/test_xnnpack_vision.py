"""The image part as a `.pte`'s method equals the traced one, whatever the grid, from patches and from an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.extension.pybindings import portable_lib
from torch import Tensor
from vision_checkpoints import FAMILIES, GRIDS, ours_of, processed, vision_model
from xnnpack_artifacts import recipe

from lfm2_export.graph.trace import trace_vision
from lfm2_export.model.vision.images import Image, encode, images_of
from lfm2_export.progress import silent
from lfm2_export.targets.xnnpack import methods, target
from lfm2_export.targets.xnnpack.table import TABLE, Delegated, Hosted
from lfm2_export.targets.xnnpack.vision import prepared_images
from lfm2_export.targets.xnnpack.weights import Weights

ERROR = 1e-5  # of the largest value
MOST = 256  # embeddings of an image
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2_vl": ("lfm2_vl", {}),
    "lfm2_vl without a norm, exact GELU, no merging": (
        "lfm2_vl",
        {"projector_use_layernorm": False, "downsample_factor": 1, "tower": {"hidden_act": "gelu"}},
    ),
    "lfm2_vl merging by 3, one place in the table": ("lfm2_vl", {"downsample_factor": 3, "tower": {"num_patches": 1}}),
    "lfm3_vl": ("lfm3_vl", {}),
    "lfm3_vl merging by 3, wide kernel, one KV head": (
        "lfm3_vl",
        {"tower": {"spatial_merge_size": 3, "conv_kernel_size": 5, "num_key_value_heads": 1}},
    ),
}


class Pair:
    """A model of transformers', ours, and the loaded method."""

    def __init__(self, folder: Path, form: str, family: str, changes: dict[str, Any]) -> None:
        self.theirs, self.form, self.family = vision_model(family, **changes), form, family
        self.ours = ours_of(self.theirs)
        method, most = (
            (methods.image_encoder, math.isqrt(MOST)) if form == "resident" else (methods.patch_encoder, MOST)
        )
        lowered = target._lower(
            (method(self.ours, most, Weights()) for _ in "1"), recipe(form=form), folder, silent, None
        )
        (self.spec,) = lowered.methods
        self.module = portable_lib._load_for_executorch(str(folder / methods.FILE))

    def call(self, image: Image) -> Tensor:
        given = (image.patches[None], torch.tensor([[image.rows, image.columns]]))
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

    def error(self, image: Image) -> float:
        expected = encode(self.ours, [image])
        found = self.call(image)
        assert found.shape == expected.shape
        return float((found - expected).abs().max() / expected.abs().max())


def one_frame(pair: Pair, patches: Tensor) -> Tensor:
    """Patches of an image: a video of the same picture."""
    frames, side = pair.ours.config.frames, pair.ours.config.patch_size
    apart = patches.reshape(len(patches), 3, frames, side, side)
    return apart[:, :, :1].expand_as(apart).flatten(1)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["explicit", "resident"])
def pair(
    shape: tuple[str, dict[str, Any]], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    return Pair(tmp_path_factory.mktemp("vision"), request.param, *shape)


@torch.inference_mode()
def test_it_equals_the_traced_image_part(pair: Pair) -> None:
    """One program for all: grids come in any order."""
    grids = [grid for name in GRIDS for grid in GRIDS[name]]
    images = images_of(pair.ours.config, processed(pair.family, pair.theirs.config, grids))
    if pair.family == "lfm3_vl":
        images = [image._replace(patches=one_frame(pair, image.patches)) for image in images]
    assert max(map(pair.error, images)) < ERROR


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
    if pair.form == "resident":
        pytest.skip("an image is its own grid")
    merge, values = pair.ours.config.merge, pair.ours.config.patch_values
    image = Image(torch.zeros(4 * merge**2, values), 3 * merge, 10 * merge)
    if merge == 1:  # patches lie in their order already
        assert pair.call(image).isfinite().all()
        return
    with pytest.raises(RuntimeError):
        pair.call(image)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_written(family: str) -> None:
    network = prepared_images(ours_of(vision_model(family)).config)
    assert {type(TABLE[step.kind]) for step in network.steps} <= {Delegated, Hosted}


def test_what_is_altered_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path, "explicit", "lfm2_vl", {})
    (image,) = images_of(pair.ours.config, processed("lfm2_vl", pair.theirs.config, [(3, 5)]))
    with torch.inference_mode():
        pair.ours.vision_tower.layers[1].mlp.fc1.weight[3, 5] += 1.0
        assert pair.error(image) > 10 * ERROR
    assert np.isfinite(pair.call(image)).all()

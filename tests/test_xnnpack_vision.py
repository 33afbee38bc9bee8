"""The image part as a `.pte`'s method equals the traced one, whatever the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.extension.pybindings import portable_lib
from torch import Tensor
from vision_checkpoints import FAMILIES, GRIDS, SHAPES, ours_of, processed, vision_model
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


class Pair:
    """A model of transformers', ours, and the loaded method."""

    def __init__(self, folder: Path, family: str, changes: dict[str, Any]) -> None:
        self.theirs, self.family = vision_model(family, **changes), family
        self.ours = ours_of(self.theirs)
        method = (methods.patch_encoder(self.ours, MOST, Weights()) for _ in "1")
        lowered = target._lower(method, recipe(form="explicit"), folder, silent, None)
        (self.spec,) = lowered.methods
        self.module = portable_lib._load_for_executorch(str(folder / methods.FILE))

    def call(self, image: Image) -> Tensor:
        given = (image.patches[None], torch.tensor([[image.rows, image.columns]]))
        (found,) = self.module.run_method(self.spec.name, given)
        return found[0]

    def error(self, image: Image) -> float:
        expected = encode(self.ours, [image])
        found = self.call(image)
        assert found.shape == expected.shape
        return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("vision"), *request.param)


@torch.inference_mode()
def test_it_equals_the_traced_image_part(pair: Pair) -> None:
    """One program for all: grids come in any order."""
    grids = [grid for name in GRIDS for grid in GRIDS[name]]
    images = images_of(pair.ours.config, processed(pair.family, pair.theirs.config, grids))
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
    (image,) = images_of(pair.ours.config, processed("lfm2_vl", pair.theirs.config, [(3, 5)]))
    with torch.inference_mode():
        pair.ours.vision_tower.layers[1].mlp.fc1.weight[3, 5] += 1.0
        assert pair.error(image) > 10 * ERROR
    assert np.isfinite(pair.call(image)).all()

"""The image part as ONNX, run by onnxruntime, equals the traced one, whatever the grids and however many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from vision_checkpoints import FAMILIES, GRIDS, SHAPES, Grids, ours_of, processed, vision_model

from lfm2_export.graph.trace import trace_vision
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.model.vision.images import encode, images_of
from lfm2_export.targets.onnx.vision import TABLE, vision_graph

ERROR = 1e-5  # of the largest value


class Pair:
    """A model of transformers', ours, and the graph in onnxruntime."""

    def __init__(self, folder: Path, family: str, changes: dict[str, Any]) -> None:
        self.family, self.theirs = family, vision_model(family, **changes)
        self.ours: VisionEncoder = ours_of(self.theirs)
        vision_graph(self.ours).save(folder / "vision_encoder.onnx")
        self.session = onnxruntime.InferenceSession(folder / "vision_encoder.onnx")

    def error(self, grids: Grids) -> float:
        given = processed(self.family, self.theirs.config, grids)
        with torch.inference_mode():
            expected = encode(self.ours, images_of(self.ours.config, given)).numpy()
        arrays = {name: np.asarray(tensor) for name, tensor in given.items()}
        if "pixel_attention_mask" in arrays:
            arrays["pixel_attention_mask"] = arrays["pixel_attention_mask"].astype(np.int64)
        (found,) = self.session.run(["image_features"], arrays)
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("vision"), *request.param)


@pytest.mark.parametrize("name", GRIDS)
def test_it_equals_the_traced_image_part(name: str, pair: Pair) -> None:
    grids = GRIDS[name]
    together = [grids] if pair.family == "lfm2_vl" else [[grid] for grid in grids]  # an image a call
    assert max(map(pair.error, together)) < ERROR


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_kind_of_step(family: str) -> None:
    assert trace_vision(ours_of(vision_model(family)).config).kinds().keys() <= TABLE.keys()

"""Cutting a model that one NPU context cannot hold."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lfm2_export import recipes
from lfm2_export.errors import RecipeError
from lfm2_export.model.random_init import SIZES
from lfm2_export.targets.qnn.capacity import first_layers, shards_needed


@pytest.mark.parametrize(("layers", "shards"), [(16, 1), (16, 3), (30, 4), (5, 5)])
def test_layers_are_split_evenly(layers: int, shards: int) -> None:
    edges = [0, *first_layers(layers, shards), layers]
    sizes = [end - start for start, end in pairwise(edges)]
    assert len(sizes) == shards
    assert 0 < max(sizes) <= min(sizes) + 1


def test_released_shapes_are_cut_only_where_they_must_be() -> None:
    assert shards_needed(SIZES["350m"], recipes.load("qnn-16a8w"), copies=2) == 1
    assert shards_needed(SIZES["1.2b"], recipes.load("qnn-fp16"), copies=1) == 1
    assert shards_needed(SIZES["1.2b"], recipes.load("qnn-fp16"), copies=2) == 2
    assert shards_needed(SIZES["2.6b"], recipes.load("qnn-fp16"), copies=2) == 4


def test_a_long_context_takes_room_too() -> None:
    sequences = [recipes.load("qnn-16a8w", [f"window={window}"]) for window in (2048, 128_000)]
    short, long = (shards_needed(SIZES["1.2b"], each, copies=2) for each in sequences)
    assert short < long


def test_a_layer_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(RecipeError, match="a single layer"):
        shards_needed(SIZES["2.6b"], recipes.load("qnn-fp16"), copies=2, limit=10**8)
